"""The branches and tags of a model at the Hugging Face Hub: what a tracked model's pattern chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from lockgate.adapters.sources.hub_api import endpoint_of, translated
from lockgate.domain.digests import read_json
from lockgate.domain.sources import Source
from lockgate.errors import SourceError


@dataclass(frozen=True)
class References:
    branches: tuple[str, ...]
    tags: tuple[str, ...]


def hub_references(
    source: Source, endpoint: str | None, token: str | None, timeout: float
) -> References:
    """All names of branches and tags. Raises `SourceError`.

    Asked as `HfApi.list_repo_refs` asks, which takes no timeout.
    """
    with translated(source):
        answer = get_session().get(
            f"{endpoint_of(endpoint)}/api/models/{source.location}/refs",
            headers=build_hf_headers(token=token, library_name="lockgate"),
            timeout=timeout,
        )
        hf_raise_for_status(answer)
        try:
            said = read_json(answer.content)
            return References(_names(said["branches"]), _names(said["tags"]))
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{source}: the Hub lists no branches and tags") from error


def _names(listed: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(str(reference["name"]) for reference in listed)
