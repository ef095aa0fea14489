"""`python -m busbar_scheduler`."""

from busbar_scheduler.main import main

main()
