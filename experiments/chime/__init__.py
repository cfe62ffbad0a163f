"""Chime, the small world of bouncing balls that ring: how it is rendered, trained, judged and studied."""
