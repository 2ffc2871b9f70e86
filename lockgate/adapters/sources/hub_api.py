"""Asking the Hugging Face Hub, or a mirror of it: huggingface_hub's calls, and its errors in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, ModelInfo, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lockgate.adapters.sources.transfer import Interrupted
from lockgate.domain.sources import Source
from lockgate.errors import SourceError


def model_info(
    source: Source,
    repo: str,
    revision: str | None,
    endpoint: str | None,
    token: str | None,
    timeout: float,
    **asked: Any,
) -> ModelInfo:
    """What the Hub says of a model. Raises `SourceError` for an answer that is none, and huggingface_hub's own errors."""
    try:
        return _api(endpoint, token).model_info(repo, revision=revision, timeout=timeout, **asked)
    except HFValidationError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # Its library takes what it gets for the Hub's: a proxy's page in front of it is no JSON, a mirror may say anything.
        raise SourceError(
            f"{source} at {endpoint_of(endpoint)}: what answers there does not speak as the Hub does",
            hint="check HF_ENDPOINT, and what stands between here and there",
        ) from error


def endpoint_of(endpoint: str | None) -> str:
    """Where the Hub is: as given, or as the environment says now (not when huggingface_hub was imported)."""
    return (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _api(endpoint: str | None, token: str | None) -> HfApi:
    return HfApi(endpoint=endpoint_of(endpoint), token=token, library_name="lockgate")


@contextmanager
def translated(source: Source) -> Iterator[None]:
    """huggingface_hub's errors as `SourceError`; as `Interrupted` where what has arrived can be continued."""
    where = f"{source} at {endpoint_of(None)}"
    try:
        yield
    except GatedRepoError as error:
        raise SourceError(
            f"{where}: the model is gated and this account has no access",
            hint="ask for access on the model's page, then set HF_TOKEN to a token of that account",
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{where}: no such model, or it is private",
            hint="check the name; for a private model set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(
            f"{where}: the model has no revision {source.revision!r}",
            hint="give a branch, a tag or a 40-hex commit",
        ) from error
    except DisabledRepoError as error:
        raise SourceError(f"{where}: the Hub has disabled this model") from error
    except (RemoteEntryNotFoundError, FileMetadataError) as error:
        raise SourceError(
            f"{where}: the Hub lists a file that it does not serve: {error}"
        ) from error
    except HFValidationError as error:
        raise SourceError(f"{where}: not a name that the Hub takes: {error}") from error
    except OfflineModeIsEnabled as error:
        raise SourceError(f"{where}: HF_HUB_OFFLINE is set", hint="unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        kind = (
            Interrupted if status is None or status >= 500 or status in (408, 429) else SourceError
        )
        raise kind(f"{where}: the Hub answered {status}", hint="try again later") from error
    # The base of the HTTP client that huggingface_hub was built on, whichever that is.
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise Interrupted(
            f"{where}: the connection failed: {error}",
            hint="run again: what has arrived is kept and continued",
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # huggingface_hub's own consistency check raises a bare OSError.
        raise Interrupted(
            f"{where}: the transfer was incomplete: {error}", hint="run again"
        ) from error
