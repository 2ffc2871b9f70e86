"""Serving engines. One module each, found by name in `serving.engines.registry`."""
