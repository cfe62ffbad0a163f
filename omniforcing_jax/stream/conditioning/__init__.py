"""Picture and sound that a stream is given: checked, read, encoded block by block."""
