"""The dual-stream transformer and the views that make it teacher, masked student or streaming student."""
