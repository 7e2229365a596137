"""Feature `security_headers`: response header fields enforced by browsers."""
