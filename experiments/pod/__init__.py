"""Full-size programs on slices of TPUs, without any TPU: which mesh, what is compiled, what it costs."""
