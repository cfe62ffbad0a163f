"""From a prompt to text contexts."""
