"""fastgate: an API and AI gateway with a compiled hot path and plugins in plain Python."""

__version__ = "0.1.0"
