"""Deployable Prefect flows: composition only. Addressed by module path, e.g. `flows.release.release`."""
