"""Chunks of picture and sound, streamed from a causal student."""
