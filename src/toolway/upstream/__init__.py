"""The model server: the client, one model call, what it says of its models."""
