"""The camera of a stream: keys that move it, and its path block by block."""
