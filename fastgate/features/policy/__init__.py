"""Feature `policies`: rules in CEL over a request."""
