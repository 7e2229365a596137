"""From the config to what a worker runs: destinations, routes, services."""
