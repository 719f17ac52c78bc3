"""The tool loop and everything about one request with tools of ours; knows no ASGI and no HTTP server."""
