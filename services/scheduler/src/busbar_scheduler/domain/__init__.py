"""What runs where: pure decisions from values to values."""
