"""The customer's edge of Busbar."""
