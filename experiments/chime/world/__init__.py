"""Chime's library: the world rendered, clips of it encoded, and what its trainings share."""
