"""`python -m busbar_node_agent`."""

import sys

from busbar_node_agent.main import main

sys.exit(main())
