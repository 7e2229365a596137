"""Choosing one of several targets: round robin, least requests, two choices, hashing, moving averages."""
