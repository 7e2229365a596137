"""Features `request_headers` and `response_headers`: edits of header fields."""
