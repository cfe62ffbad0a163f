"""Weights from and to PyTorch checkpoints, by tables that must cover every tensor."""
