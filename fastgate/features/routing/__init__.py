"""Feature `rewrite` and `redirect`: where a request goes."""
