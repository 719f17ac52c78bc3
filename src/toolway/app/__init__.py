"""Puts it all together: the ASGI app, its state, health, reload, the command line."""
