"""One file per feature: its config Struct, its build(), its plugin."""
