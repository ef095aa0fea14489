"""What the agent decides, as plain functions and small classes: no I/O, no clock."""
