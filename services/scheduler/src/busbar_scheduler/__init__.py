"""Decides what runs where: deployments, bundles, placements and routes."""
