"""Sends messages to the webhook endpoints of tenants."""
