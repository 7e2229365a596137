"""Compiled primitives: libc, cpython and _core only. Every one is usable from other services."""
