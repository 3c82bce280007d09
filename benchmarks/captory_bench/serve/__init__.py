"""The server against a bare loop and request-level batching."""
