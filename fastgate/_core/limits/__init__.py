"""Rate and concurrency limits: one bucket or window, keyed, leased, shared by all processes."""
