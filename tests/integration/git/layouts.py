"""Repositories laid down in every way, and their own checks of themselves."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from lockgate.adapters.git import Layout, template, template_directory
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import Resources, ServingSpec
from serving.manifests import render

PEM = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQ==\n-----END PUBLIC KEY-----\n"


def lay_files(target: Path, layout: Layout) -> Path:
    """The files only: nothing is pushed."""
    runner = template.GitRunner(target, author=template.LOCKGATE, timeout=30)
    template._make(
        template_directory(), target, layout, public_key_pem=PEM, policy=None, branch="main",
        git=runner,
    )  # fmt: skip
    return target


def own_checks() -> ModuleType:
    """The repository's `scripts/validate.py`, to be called check by check."""
    path = template_directory() / "scripts" / "validate.py"
    spec = importlib.util.spec_from_file_location("gitops_repository_checks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Renderer:
    """Renders overlays of laid down repositories; overlays that are made of the same files are rendered once."""

    def __init__(self, kubectl: Path) -> None:
        self.checks = own_checks()
        self._tool = [str(kubectl), "kustomize"]
        self._seen: dict[str, list[dict[str, Any]]] = {}

    @property
    def distinct(self) -> int:
        return len(self._seen)

    def render(self, root: Path, kustomization: dict[str, Any]) -> list[dict[str, Any]]:
        """As `validate.py` renders it, in a directory of its own below the root."""
        digest = hashlib.sha256()
        for path, text in sorted(_closure(root, root / ".validate", kustomization)):
            digest.update(f"{path}\0{text}\0".encode())
        key = digest.hexdigest()
        if key not in self._seen:
            self._seen[key] = self.checks.render(root, kustomization, self._tool)
        return self._seen[key]


def _closure(root: Path, at: Path, data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every file that a kustomization takes in, with its text; names of environments are part of both."""
    yield str(at.relative_to(root)), yaml.safe_dump(data)
    patches = [p["path"] for p in data.get("patches", []) if "path" in p]
    for entry in [*data.get("resources", []), *data.get("components", []), *patches]:
        path = Path(at, entry).resolve()
        if path.is_dir():
            yield from _closure(
                root, path, yaml.safe_load((path / "kustomization.yaml").read_text())
            )
        else:
            yield str(path.relative_to(root)), path.read_text()


FETCHER: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "any"},
    "spec": {
        "template": {
            "spec": {
                "initContainers": [
                    {
                        "name": "fetch-model",
                        "image": "registry.example.com/lockgate@sha256:" + "1" * 64,
                    }
                ]
            }
        }
    },
}
"""Whose image the component init-container needs."""
SERVED: dict[str, dict[str, Any]] = {
    "vllm": {},
    "vllm, scaled by KEDA": {"replicas": 2, "scaling": {"max": 4, "running_per_replica": 8}},
    "vllm, scaled by an HPA": {
        "replicas": 2,
        "scaling": {"max": 4, "running_per_replica": 8, "by": "hpa"},
    },
    "vllm over two nodes": {"parallel": {"tensor": 1, "pipeline": 2, "nodes": 2}},
    "kserve": {"engine": "kserve"},
    "kserve-serverless": {"engine": "kserve-serverless"},
}
"""Engines, and what else decides which kinds a slot consists of."""


@contextlib.contextmanager
def taken_up(root: Path, environment: str, *components: str) -> Iterator[None]:
    """With these components in the list of the environment, or of its GPU slots where that is their place."""
    own = root / f"apps/vllm/environments/{environment}/kustomization.yaml"
    before = {}
    for component in components:
        spot = component.startswith("spot-")
        into, up = (own.parent / "gpu/kustomization.yaml", "../../..") if spot else (own, "../..")
        before.setdefault(into, into.read_text())
        data = yaml.safe_load(into.read_text())
        data["components"] = [*data["components"], f"{up}/components/{component}"]
        if component == "init-container":
            patch = {"target": {"kind": "Deployment"}, "patch": yaml.safe_dump(FETCHER)}
            data["patches"] = [*data.get("patches", []), patch]
        into.write_text(yaml.safe_dump(data))
    yield
    for path, text in before.items():
        path.write_text(text)


def occupant(resources: Resources, **serving: Any) -> Occupant:
    candidate = Candidate(
        model=ImageRef.parse("registry.acme.test/ml/models/smol@" + Digest.of_bytes(b"m")),
        runtime=ImageRef.parse("registry.acme.test/ml/runtimes/vllm@" + Digest.of_bytes(b"r")),
        serving=ServingSpec.model_validate(
            {"served_model_name": "smol", "resources": resources, **serving}
        ),
    )
    return Occupant(candidate=candidate, release="one", evidence=Digest.of_bytes(b"e"))


def slot_objects(
    root: Path, environment: str, resources: Resources, kubectl: Path, **serving: Any
) -> list[dict[str, Any]]:
    state = ReleaseState(
        model="smol", environment=environment, phase=Phase.STABLE, stable=Slot.A,
        a=occupant(resources, **serving),
    )  # fmt: skip
    return [yaml.safe_load(text) for text in render(state, root, kubectl=kubectl).values()]
