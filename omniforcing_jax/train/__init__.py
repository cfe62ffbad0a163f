"""The one trainer: state, step, loop, checkpoint, data."""
