"""Layers without a network: declarations of weights, linear maps, norms, rotations, sight, attention."""
