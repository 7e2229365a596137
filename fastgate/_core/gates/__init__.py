"""The compiled gates of the features: what a route asks of a request before it goes on."""
