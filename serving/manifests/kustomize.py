"""`kubectl kustomize`, run so that it can reach nothing but the directory it is given."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from lockgate.errors import EnvironmentMissing, RenderingError

_TIMEOUT_SECONDS = 60
#: A base that fetches another from the network would make rendering depend on more than the commit.
_NOWHERE = "http://127.0.0.1:9"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def build(directory: Path, *, kubectl: Path) -> list[dict[str, Any]]:
    """The objects that the kustomization in `directory` makes, in kustomize's order.

    `RenderingError` with kustomize's own words; `EnvironmentMissing` if `kubectl` cannot be run.
    """
    environment = {
        "HOME": str(directory),
        "PATH": "",
        "HTTP_PROXY": _NOWHERE,
        "HTTPS_PROXY": _NOWHERE,
    }
    try:
        done = subprocess.run(
            [str(kubectl), "kustomize", str(directory)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise RenderingError(
            f"kubectl kustomize did not end within {_TIMEOUT_SECONDS} s"
        ) from error
    except OSError as error:
        raise EnvironmentMissing(
            f"{kubectl} cannot be run: {error}", hint="install kubectl, or run `make setup`"
        ) from error
    if done.returncode != 0:
        raise RenderingError(
            f"kubectl kustomize failed: {done.stderr.strip()[-2000:]}",
            hint="the bases and components are under apps/ in the GitOps repository",
        )
    try:
        documents = list(yaml.load_all(done.stdout, Loader=_Loader))
    except yaml.YAMLError as error:
        raise RenderingError(f"kubectl kustomize wrote no YAML: {error}") from error
    return [document for document in documents if document]
