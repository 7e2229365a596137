"""Feature `security_headers`: response fields that browsers enforce."""
