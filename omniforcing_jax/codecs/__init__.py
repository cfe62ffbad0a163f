"""Latents to pixels and sound and back, in the architecture of LTX-2 (Flax Linen)."""
