"""A stream's prompt changes: when, over how many blocks, and what of the past is computed again."""
