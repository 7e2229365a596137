"""What keeps a failing service from taking others with it: breaker, bulkhead, adaptive limit."""
