"""JSON Schema for model servers: dereference, compile for a target, validate, repair."""
