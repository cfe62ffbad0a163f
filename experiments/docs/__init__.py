"""What makes the documents: pictures drawn by code, and the measure of their sentences."""
