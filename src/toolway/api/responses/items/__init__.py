"""The Responses API's items and the chat completions they stand for: requests in, objects and events out. No I/O."""
