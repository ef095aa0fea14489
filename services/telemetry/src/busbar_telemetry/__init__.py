"""The fleet as seen: nodes, load, events and traces; metrics and the operator's console."""
