"""Layers without a network: linear maps, norms, rotations, masks, attention and its kernels."""
