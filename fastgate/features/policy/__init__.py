"""Feature `policies`: rules with a condition in CEL over the request."""
