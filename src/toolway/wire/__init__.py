"""Bytes as they stand on the wire: server-sent events, JSON that is lax or large, and how many tokens it has.

| module           | what                                                                        |
|------------------|-----------------------------------------------------------------------------|
| `sse`            | server-sent events, read as sloppy servers send them, and written           |
| `lenient_json`   | lax JSON, read; values that are too deep, too large or too broken, written  |
| `large_json`     | JSON of many megabytes, read in steps, so that other threads run in between |
| `token_estimate` | tokens of a text, as far as its length tells                                |
"""
