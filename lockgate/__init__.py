"""Lockgate: from an open-weights LLM's source to production vLLM replicas, stage by stage."""

__version__ = "0.1.0"
