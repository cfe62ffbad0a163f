"""Whole clips from a bidirectional teacher."""
