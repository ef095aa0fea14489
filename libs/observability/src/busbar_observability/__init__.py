"""Logs, metrics, traces and the ops listener: the same for every service."""
