"""Chime, the small world of bouncing balls that ring: how it looks and sounds, how clips are judged, the demo.

The renderer, the trainings and the studies are in `experiments/chime`.
"""
