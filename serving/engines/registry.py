"""The engines that exist. A new one is a module in this package and one entry here."""

from __future__ import annotations

from lockgate.errors import UsageError
from serving.engines.base import Engine
from serving.engines.kserve import KserveEngine, KserveServerlessEngine
from serving.engines.vllm import VllmEngine

ENGINES: dict[str, Engine] = {
    made.name: made for made in (VllmEngine(), KserveEngine(), KserveServerlessEngine())
}


def engine(name: str) -> Engine:
    """The engine of this name. `UsageError` if there is none."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UsageError(
            f"unknown serving engine {name!r}", hint=f"known: {', '.join(sorted(ENGINES))}"
        ) from None
