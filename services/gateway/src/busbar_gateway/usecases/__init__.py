"""Serving a request from admission to charge."""
