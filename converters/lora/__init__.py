"""LoRA files of every dialect, fused into the tensors that they change."""
