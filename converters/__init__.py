"""Weights from and to PyTorch, by tables that are total."""
