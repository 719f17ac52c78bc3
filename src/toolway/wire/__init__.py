"""Bytes as they stand on the wire: server-sent events and lenient JSON."""
