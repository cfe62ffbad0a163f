"""Chime, the small world: bouncing balls that ring, with ground truth for everything."""
