"""The state of the gateway by owner: the host (shared memory), the fleet, the store."""
