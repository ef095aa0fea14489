"""A day of the whole fleet in virtual time: production's decisions, simulated everything else.

`./just simulate` runs it; test_fleet.py runs a hundred short days. See docs/decisions/0033.
"""
