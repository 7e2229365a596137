"""Feature `rbac`: authorization of a route by scopes, roles and permissions."""
