"""Subscribers of what happens: the process log and the log of each conversation."""
