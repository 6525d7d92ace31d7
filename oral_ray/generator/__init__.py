"""The generator: from a condition to weight tokens."""
