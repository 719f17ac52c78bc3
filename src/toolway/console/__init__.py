"""The console: a page for people at `/`, and the API behind it."""
