"""Run the gateway: `python -m busbar_gateway`."""

import sys

from busbar_gateway.main import main

sys.exit(main())
