"""Measure how good picture and sound of any media file are: synchrony, block seams, drift."""
