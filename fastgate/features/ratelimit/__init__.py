"""Feature `limits`: rates, concurrency, cost and bans."""
