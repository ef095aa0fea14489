"""Edges and the bus: they translate and nothing else."""
