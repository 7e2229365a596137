"""Feature `access`: which networks may send requests."""
