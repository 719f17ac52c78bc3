"""Subscribers of what happens: the log of the process and of each conversation, metrics, traces."""
