"""Base models: geometry, identity, completeness, loading."""
