"""Telemetry's edges: the bus, OTLP, the admin API, the console, metrics."""
