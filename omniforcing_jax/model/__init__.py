"""The dual-stream transformer, its cache, and the views that make it teacher, masked student or streaming student."""
