"""Reading what users wrote: specs, policies, digests. Every fault is a `UsageError` that names the file and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lockgate.cli.console import invalid
from lockgate.domain.policy import Policy
from lockgate.domain.sources import Source, SourceKind
from lockgate.domain.spec import ReleaseSpec
from lockgate.errors import UsageError
from lockgate.settings import Settings

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, model: type[Model]) -> Model:
    """One YAML document as `model`."""
    try:
        data: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds no document")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise invalid(path, error) from error


def read_spec(path: Path) -> ReleaseSpec:
    """A release spec. A relative directory source, calibration set or trace is relative to the spec's own place."""
    spec = read_yaml(path, ReleaseSpec)
    try:
        source = Source.parse(spec.source)
    except ValueError as error:
        raise UsageError(f"{path}: source: {error}") from error
    if source.kind is SourceKind.DIRECTORY:
        directory = (path.parent / Path(source.location).expanduser()).absolute()
        spec = spec.merged({"source": f"dir:{directory}"})
    dataset = spec.calibration.dataset
    if dataset != "builtin":
        place = (path.parent / Path(dataset).expanduser()).absolute()
        spec = spec.merged({"calibration": {**spec.calibration.to_data(), "dataset": str(place)}})
    if any(profile.trace for profile in spec.benchmark.profiles):
        benchmark = spec.benchmark.to_data()
        for trace in filter(None, (profile["trace"] for profile in benchmark["profiles"])):
            trace["path"] = str((path.parent / Path(trace["path"]).expanduser()).absolute())
        spec = spec.merged({"benchmark": benchmark})
    return spec


def policy_or_default(path: Path | None) -> Policy:
    """The policy in `path`, else the GitOps repository's, else, where there is no repository, the strict default."""
    if path is not None:
        return read_yaml(path, Policy)
    settings = Settings()
    if settings.remote is None and not settings.layout.remote.exists():
        return Policy()
    from tasks.workspace import Workspace

    return Workspace(settings).policy
