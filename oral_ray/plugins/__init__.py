"""Plugins for serving engines, found by their entry points."""
