"""Postgres, the bus and the admin API: they translate and nothing else."""
