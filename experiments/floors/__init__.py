"""What a program for a GPU must at least take, from its compiled text: memory, traffic, work, and milliseconds.

No GPU is needed. `experiments/compile_for_gpu.py` is the command; `experiments/gpu/` measures on a GPU.
"""
