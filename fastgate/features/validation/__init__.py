"""Feature `validate`: size, type and schema of requests."""
