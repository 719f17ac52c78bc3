"""One package for each dialect that clients speak, and the routes that have none; no dialect imports another."""
