"""What telemetry does, one verb a module."""
