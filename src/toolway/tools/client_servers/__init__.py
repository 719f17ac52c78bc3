"""Tool servers that a request brings along: declared, reached under guard, kept for a while."""
