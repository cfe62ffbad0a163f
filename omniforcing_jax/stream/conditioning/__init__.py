"""Conditioning of a stream: given picture and sound are checked, read, and encoded block by block."""
