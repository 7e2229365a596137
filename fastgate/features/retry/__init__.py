"""Retries of a route: which failures, how often, after which wait, within which budget."""
