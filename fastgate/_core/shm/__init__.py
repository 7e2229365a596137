"""Shared memory of all processes of one machine, and the tables in it."""
