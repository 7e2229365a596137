"""One folder per feature: its config Structs, its checks, and the builder of its plugin."""
