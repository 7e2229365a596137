"""The processes and the request path: supervisor, worker, connection, exchange."""
