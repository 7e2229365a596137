"""Memory shared by all processes of one machine, and the tables in it."""
