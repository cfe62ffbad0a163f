"""The way from somebody's LTX-2 to a student, walked whole at a tiny size: `python -m experiments.dry_run`."""
