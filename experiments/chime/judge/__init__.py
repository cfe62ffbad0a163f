"""What chime's evaluations share: where clips come from, and clips of a student while it trains."""
