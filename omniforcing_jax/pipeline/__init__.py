"""A pipeline as one value, its weights folder, and what a request must satisfy before work begins."""
