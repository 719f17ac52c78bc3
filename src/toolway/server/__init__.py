"""ASGI and the socket: uvicorn protocol, authentication, disconnects, server-sent events, WebSockets."""
