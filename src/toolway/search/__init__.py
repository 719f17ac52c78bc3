"""Search of tools by words: what a text is split into, the index, neighbours, fusion of rankings; plain functions."""
