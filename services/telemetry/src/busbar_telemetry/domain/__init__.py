"""What telemetry knows and how it is summed up. Pure: time and bytes come in as values."""
