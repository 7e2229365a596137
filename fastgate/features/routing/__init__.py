"""Features `rewrite`, `redirect` and `respond`: the upstream path of a request, or a local response."""
