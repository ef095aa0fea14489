"""Usage in, keys and events out."""
