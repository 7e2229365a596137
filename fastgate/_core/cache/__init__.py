"""Caches in memory, and the rules of HTTP caching (RFC 9111) over stored responses."""
