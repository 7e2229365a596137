"""HTTP text: heads, paths, patterns, edits, event streams, addresses."""
