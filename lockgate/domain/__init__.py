"""Frozen types and pure decisions. Nothing here reads a file, a clock, a network or an environment variable."""
