"""`toolway demo`: a real model server, real tool servers and Toolway, on this machine and with no key."""
