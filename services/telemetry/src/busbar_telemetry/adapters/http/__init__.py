"""Telemetry's HTTP listener: admin API, Jaeger's query API, console."""
