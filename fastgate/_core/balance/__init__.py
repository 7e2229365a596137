"""Load balancing: round robin, least requests, power of two choices, consistent hashing, moving averages."""
