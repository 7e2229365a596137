"""Feature `allow`: which consumers, roles and scopes may use a route."""
