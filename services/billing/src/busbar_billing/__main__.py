"""`python -m busbar_billing`."""

from busbar_billing.main import main

main()
