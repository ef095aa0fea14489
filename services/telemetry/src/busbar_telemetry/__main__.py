"""`python -m busbar_telemetry`."""

from busbar_telemetry.main import main

main()
