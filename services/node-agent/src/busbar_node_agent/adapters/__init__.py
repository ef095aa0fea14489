"""Triton, the bus, the disk and the GPU counters: translation and nothing else."""
