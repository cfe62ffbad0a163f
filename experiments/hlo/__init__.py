"""Compiled programs as text (optimised HLO): reading them, and the work of one instruction."""
