"""HTTP/1.1 client, SSRF guard, allow list, host names; knows nothing of tools or models."""
