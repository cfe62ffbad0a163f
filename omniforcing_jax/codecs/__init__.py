"""Latents to pixels and sound and back, at the architecture of LTX-2 (Flax Linen)."""
