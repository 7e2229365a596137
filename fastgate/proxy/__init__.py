"""The data plane of one worker: client connections, exchanges, stages, access log."""
