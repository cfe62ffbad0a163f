"""Changes of a stream's prompt: their blocks, their fades, and the past that is recomputed."""
