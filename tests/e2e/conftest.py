"""Fixtures of all end-to-end tests. What shares the demonstration's workspace runs in the order of its files' names."""

from __future__ import annotations

from tests.integration.conftest import demo_model

__all__ = ["demo_model"]
