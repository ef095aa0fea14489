"""Billing: tenants, API keys, price book and the double-entry ledger."""
