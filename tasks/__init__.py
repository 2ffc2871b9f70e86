"""Thin Prefect tasks: retries, timeouts, logging, artifacts and identity of finished steps. The work is in the adapters."""
