"""One node: its Triton, its slots, its model files, its measured work and energy."""

__version__ = "0.1.0"
