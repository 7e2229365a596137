"""Feature `cors`: cross-origin requests of browsers (Fetch standard)."""
