"""The checks of validate.sh, which says what is needed to run them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

try:
    import jsonschema
    import kubernetes_validate
    import yaml
except ImportError as error:
    sys.exit(f"validate: {error.name} is missing: pip install -r scripts/requirements.txt")

KUBERNETES = "1.35"
CORE_GROUPS = {
    "", "apps", "batch", "autoscaling", "policy", "networking.k8s.io", "rbac.authorization.k8s.io",
    "storage.k8s.io", "scheduling.k8s.io", "admissionregistration.k8s.io",
}  # fmt: skip
"""Groups of Kubernetes itself; every other one needs its file in schemas/."""
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
EXAMPLES = re.compile(
    r"example\.(com|net)|example-(project|region|cluster)|123456789012|lockgate\.invalid|0{8}-0{4}-0{4}-0{4}-0{12}"
)
RENDER_SECONDS = 120
# It reads its definitions, a megabyte of JSON, anew for every object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def kind_of(kustomization: Path) -> str:
    return str(yaml.load(kustomization.read_text(), Loader=_Loader).get("kind", "Kustomization"))


def overlays(root: Path) -> dict[str, dict[str, Any]]:
    """Name of each thing to render and the kustomization that renders it, relative to a directory of its own in the root.

    A component is rendered on what it is made for: of a slot, of an environment, or of the cluster.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(root.rglob("kustomization.yaml")):
        directory = path.parent.relative_to(root)
        name = directory.as_posix()
        if kind_of(path) != "Component":
            found[name] = {"resources": [f"../{name}"]}
            continue
        parts = directory.parts
        components = [f"../{name}"]
        if parts[0] == "apps":
            base = f"../apps/{parts[1]}/base"
            placing = parts[-1] == "gpu" and parts[2] != "components"
            if placing or parts[-1].startswith("spot-"):  # they add to what the other one says
                components.insert(0, f"../apps/{parts[1]}/components/gpu")
        elif parts[0] == "clouds" and parts[-1] == "gpu":
            base = "../apps/vllm/base"
            components.insert(0, "../apps/vllm/components/gpu")
        elif parts[:2] in (("platform", "cluster"), ("platform", "monitoring")):
            base = "../platform/cluster"
        else:
            base = "../platform/base"
        found[name] = {"resources": [base], "components": components}
    return found


def render(root: Path, kustomization: dict[str, Any], tool: list[str]) -> list[dict[str, Any]]:
    """The objects that it makes in a copy of the repository. Raises `ValueError` with kustomize's own words."""
    work = root / ".validate"
    work.mkdir(exist_ok=True)
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (work / "kustomization.yaml").write_text(yaml.safe_dump({**head, **kustomization}))
    try:
        done = subprocess.run(
            [*tool, str(work)], capture_output=True, text=True, timeout=RENDER_SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"kustomize did not end within {RENDER_SECONDS} s") from error
    if done.returncode:
        raise ValueError(done.stderr.strip()[-2000:])
    return [item for item in yaml.load_all(done.stdout, Loader=_Loader) if item is not None]


def plain_files(root: Path) -> list[Path]:
    """Files that hold whole objects: everything under these directories that is no kustomization."""
    patterns = (
        "apps/**/*",
        "clouds/**/*",
        "clusters/**/*",
        "models/*/*/manifests/*",
        "platform/**/*",
    )
    return sorted(
        path
        for pattern in patterns
        for path in root.glob(pattern)
        if path.suffix in (".yaml", ".yml", ".json") and path.name != "kustomization.yaml"
    )


@cache
def schema_of(schemas: Path, api_version: str, kind: str) -> Any:
    """Validator of a custom resource; None for kinds of Kubernetes itself. `ValueError` for a kind without a schema."""
    group, _, version = api_version.rpartition("/")
    if group in CORE_GROUPS:
        return None
    path = schemas / group / f"{kind.lower()}_{version}.json"
    if not path.is_file():
        raise ValueError(f"{api_version} {kind} is of no known kind: there is no {path}")
    return jsonschema.Draft202012Validator(json.loads(path.read_text()))


def faults(item: Any, schemas: Path) -> Iterator[str]:
    """What is wrong with one object: its schema, strictly, and images that are not named by digest."""
    if not (isinstance(item, dict) and item.get("apiVersion") and item.get("kind")):
        yield f"no Kubernetes object: {str(item)[:80]!r}"
        return
    try:
        validator = schema_of(schemas, item["apiVersion"], item["kind"])
        if validator is None:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
        else:
            for error in validator.iter_errors(item):
                yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message[:300]}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"{item['apiVersion']} {item['kind']} is of no known kind in Kubernetes {KUBERNETES}"
    except ValueError as error:
        yield str(error)
    for image in images(item):
        if not DIGEST.search(image):
            yield f"an image without a digest: {image}"


def images(value: Any) -> Iterator[str]:
    """Every `image` of a container and `reference` of an image volume: a tag can move after it was verified."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("image", "reference") and isinstance(inner, str):
                yield inner
            else:
                yield from images(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from images(inner)


def named(item: Any) -> str:
    metadata = item.get("metadata", {}) if isinstance(item, dict) else {}
    return f"{item.get('kind') if isinstance(item, dict) else '?'} {metadata.get('name')}"


def check(items: Iterable[Any], schemas: Path, seen: set[str]) -> list[str]:
    """Faults of these objects; one that was looked at before is not looked at again."""
    found = []
    for item in items:
        text = json.dumps(item, sort_keys=True, default=str)
        if text not in seen:
            wrong = [f"{named(item)}: {fault}" for fault in faults(item, schemas)]
            found += wrong
            if not wrong:
                seen.add(text)
    return found


def renderer() -> list[str] | None:
    kustomize, kubectl = shutil.which("kustomize"), shutil.which("kubectl")
    if kubectl is not None:
        return [kubectl, "kustomize"]
    return [kustomize, "build"] if kustomize is not None else None


def main() -> int:
    """Prints a line for each thing checked; exit status 0 only if all of them hold."""
    repository = Path(__file__).resolve().parent.parent
    tool = renderer()
    if tool is None:
        print("validate: kubectl or kustomize is needed", file=sys.stderr)
        return 1
    failed = 0
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="validate-") as scratch:
        root = Path(scratch) / "repository"
        shutil.copytree(repository, root, ignore=shutil.ignore_patterns(".git", ".venv"))
        schemas = root / "schemas"

        def report(name: str, items: Iterable[Any]) -> None:
            nonlocal failed
            try:
                objects = list(items)
                found = check(objects, schemas, seen)
            except (ValueError, yaml.YAMLError) as error:
                objects, found = [], [str(error)]
            failed += bool(found)
            print(f"{'FAILED ' if found else 'valid  '} {name}: {len(objects)} objects")
            for fault in found:
                print(f"        {fault}")

        for name, kustomization in overlays(root).items():
            report(name, render(root, kustomization, tool) if tool else [])
        for path in plain_files(root):
            if ".validate" not in path.parts:
                report(str(path.relative_to(root)), yaml.load_all(path.read_text(), Loader=_Loader))
        for path in sorted(root.rglob("*.yaml")):
            if ".validate" in path.parts or path.relative_to(root).parts[0] == "schemas":
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if EXAMPLES.search(line) and not line.lstrip().startswith("#"):
                    print(f"to fill in  {path.relative_to(root)}:{number}: {line.strip()}")
    print(f"{failed} failed" if failed else f"all valid: {len(seen)} different objects")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
