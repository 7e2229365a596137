"""The request context, the pipeline of plugins, and the timer wheel."""
