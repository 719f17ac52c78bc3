"""The tool loop and everything about one request with tools of ours; knows no HTTP and no ASGI."""
