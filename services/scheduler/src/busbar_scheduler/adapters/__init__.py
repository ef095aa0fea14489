"""The bus and HTTP, translated and nothing else."""
