"""Isolation of failing services: breaker, bulkhead, adaptive limit, back-off, retry budget."""
