"""HTTP parsing and editing: heads, paths, patterns, edits, event streams, addresses."""
