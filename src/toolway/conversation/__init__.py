"""One conversation in the shape of chat completions: messages, tool calls, calls written as text, events."""
