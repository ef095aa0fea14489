"""`python -m busbar_cli`."""

from busbar_cli.main import main

main()
