"""Who owns which state: the host (shared memory), the fleet, the store."""
