"""Authentication: one file per method, called by the compiled gate in the order of a route's methods."""
