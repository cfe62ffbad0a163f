"""Trials in which work is killed at random moments: `trials` runs them, `subjects` says what is killed."""
