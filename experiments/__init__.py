"""Runs a person can read top to bottom; nothing imports them."""
