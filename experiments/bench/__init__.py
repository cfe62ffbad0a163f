"""Measurements on machines that the tests do not have."""
