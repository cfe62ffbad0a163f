"""The iterator of chunks and its consumers."""
