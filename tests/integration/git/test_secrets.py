"""Every Secret that anything in a laid down repository names: an ExternalSecret makes it, or docs/secrets.md says who does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from lockgate.adapters.git import Agent, Cloud, Layout
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import Resources
from tests.integration.git.layouts import Renderer, lay_files, slot_objects, taken_up

PAGE = Path(__file__).parents[3] / "docs" / "secrets.md"
IMAGE = ImageRef.parse("registry.acme.test/lockgate@sha256:" + "1" * 64)
REMOTE = "ssh://git@git.acme.test/platform/gitops.git"
CHOICES: tuple[tuple[Cloud, Agent], ...] = (
    *((cloud, "flux") for cloud in get_args(Cloud)), ("eks", "argocd"), ("onprem", "argocd"),
)  # fmt: skip
"""An agent's own objects are the same in every cloud but for the store."""
Named = tuple[str, str]
"""Namespace and name of a Secret."""
FOUND_BY_LABEL = {("argocd", "lockgate-repository"), ("argocd", "lockgate-webhook")}
"""What Argo CD takes up by itself: nothing names it."""
NO_REFERENCE = {
    # Names of stores, kinds and settings, and the fields of ExternalSecrets themselves.
    "secretStoreRef", "secretKey", "secret", "cacheSecretRef",
}  # fmt: skip


def references(value: Any, optional: bool = False) -> Iterator[tuple[str | None, str, bool]]:
    """Namespace if it is said, name, and whether it may be missing, of every Secret named below `value`.

    A field that has to do with secrets and is of no form known here fails: none is overlooked.
    """
    if isinstance(value, list):
        for item in value:
            yield from references(item)
        return
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        may_miss = isinstance(item, dict) and item.get("optional") is True
        if key in ("secretKeyRef", "secretRef"):
            yield item.get("namespace"), item["name"], may_miss
        elif key == "secret" and isinstance(item, dict) and "secretName" in item:
            yield None, item["secretName"], may_miss
        elif key == "existingSecret":
            yield None, item, False
        elif key == "imagePullSecrets":
            yield from ((None, entry["name"], False) for entry in item)
        elif key == "certificateRefs":
            yield from (
                (e.get("namespace"), e["name"], False) for e in item if e["kind"] == "Secret"
            )
        elif key.endswith("secret-name"):
            yield value[key.replace("secret-name", "secret-namespace")], item, False
        else:
            known = key in NO_REFERENCE or key.endswith("secret-namespace")
            assert known or "secret" not in key.lower(), f"{key}: {item}"
            yield from references(item)


def jobs(objects: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Namespace and pod of every step, as the work pool's base job template makes them."""
    for item in objects:
        if item["metadata"]["name"] == "lockgate-workpool":
            template = item["data"]["baseJobTemplate.json"]
            steps = json.loads(template)["variables"]["properties"]["step"]["enum"]
            for step in steps:
                filled = json.loads(re.sub(r"\{\{ step \}\}", step, template))
                manifest = filled["job_configuration"]["job_manifest"]
                yield "lockgate-sign" if step == "sign" else "lockgate", manifest


def laid_down(root: Path, cloud: Cloud, renderer: Renderer, kubectl: Path) -> list[dict[str, Any]]:
    """Everything that is applied to a cluster: its own, an environment's with a slot, the agent's, Prefect's."""
    objects = []
    for overlay in (
        f"clouds/{cloud}/cluster",
        "platform/environments/production",
        "platform/prefect",
    ):
        objects += renderer.render(root, {"resources": [f"../{overlay}"]})
    for path in sorted((root / "clusters/production").rglob("*.yaml")):
        objects += yaml.safe_load_all(path.read_text())
    with taken_up(root, "production", "api-key"):
        slot = slot_objects(root, "production", Resources(), kubectl)
    return [*objects, *({**o, "metadata": {**o["metadata"], "namespace": "lockgate-production"}} for o in slot)]  # fmt: skip


def wanted(root: Path, objects: list[dict[str, Any]]) -> dict[Named, bool]:
    """Every Secret that is named, and whether it may be missing wherever it is."""
    found: dict[Named, bool] = {}

    def add(default: str, value: Any) -> None:
        for namespace, name, optional in references(value):
            key = (namespace or default, name)
            found[key] = found.get(key, True) and optional

    for item in objects:
        if item["kind"] not in ("ExternalSecret", "SecretStore"):
            add(item["metadata"].get("namespace", ""), item)
    for namespace, pod in jobs(objects):
        add(namespace, pod)
    for chart, namespace in (
        ("prefect-server", "prefect"), ("prefect-worker", "lockgate"), ("prefect-worker-sign", "lockgate-sign"),
    ):  # fmt: skip
        values = yaml.safe_load((root / "charts" / f"{chart}.yaml").read_text())
        own = values.pop("secret", None)  # the chart's name for the database's
        add(namespace, values)
        if own is not None:
            assert own["create"] is False
            found[namespace, own["name"]] = False
    return found


def table(heading: str) -> dict[Named, str]:
    """The first table below a heading of docs/secrets.md: namespace and name, and the last cell of the row."""
    text = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return {(r[0].strip(" `"), r[1].strip(" `")): r[-1].strip() for r in rows}


@pytest.fixture(scope="module")
def rendered(
    tmp_path_factory: pytest.TempPathFactory, kubectl: Path
) -> dict[tuple[Cloud, Agent], tuple[Path, list[dict[str, Any]]]]:
    renderer = Renderer(kubectl)
    found = {}
    for cloud, agent in CHOICES:
        root = tmp_path_factory.mktemp("secrets") / "r"
        lay_files(
            root,
            Layout(
                ("production",), agent, cloud, remote=REMOTE, monitoring=True, lockgate_image=IMAGE
            ),
        )
        found[cloud, agent] = root, laid_down(root, cloud, renderer, kubectl)
    return found


def made(objects: list[dict[str, Any]]) -> dict[Named, dict[str, Any]]:
    return {
        (o["metadata"]["namespace"], o["spec"]["target"]["name"]): o["spec"]
        for o in objects
        if o["kind"] == "ExternalSecret"
    }


def test_every_secret_that_is_named_is_made_by_an_external_secret_or_the_page_says_by_whom(
    rendered: dict[tuple[Cloud, Agent], tuple[Path, list[dict[str, Any]]]],
) -> None:
    others = table("Made by others")
    assert all(reason for reason in others.values())
    needed: set[Named] = set()
    for choice, (root, objects) in rendered.items():
        named = wanted(root, objects)
        lacking = {key for key, optional in named.items() if not optional} - made(objects).keys()
        assert lacking <= others.keys(), choice
        needed |= lacking
        assert not made(objects).keys() & others.keys(), "made twice"
    assert needed == others.keys(), "the page names what nothing needs"


def test_no_secret_is_fetched_that_nothing_uses(
    rendered: dict[tuple[Cloud, Agent], tuple[Path, list[dict[str, Any]]]],
) -> None:
    for choice, (root, objects) in rendered.items():
        unused = made(objects).keys() - wanted(root, objects).keys() - FOUND_BY_LABEL
        assert unused == set(), choice


def test_every_external_secret_has_a_store_beside_it_whose_identity_is_its_namespaces_own(
    rendered: dict[tuple[Cloud, Agent], tuple[Path, list[dict[str, Any]]]],
) -> None:
    """Prefect's own namespace is set up with its server."""
    for (cloud, _), (_, objects) in rendered.items():
        stores = {
            o["metadata"]["namespace"]: o["spec"]["provider"]
            for o in objects
            if o["kind"] == "SecretStore" and o["metadata"]["name"] == "lockgate"
        }
        accounts = {
            o["metadata"]["namespace"]: o["metadata"].get("annotations", {})
            for o in objects
            if o["kind"] == "ServiceAccount" and o["metadata"]["name"] == "lockgate-secrets"
        }
        namespaces = {namespace for namespace, _ in made(objects)} - {"prefect"}
        assert namespaces <= stores.keys() == accounts.keys()
        for namespace in namespaces:
            text = json.dumps(stores[namespace])
            assert '"serviceAccountRef": {"name": "lockgate-secrets"}' in text
        identities = [
            stores[n]["vault"]["auth"]["kubernetes"]["role"] if cloud == "onprem" else str(accounts[n])
            for n in sorted(namespaces)
        ]  # fmt: skip
        # Azure's are numbers that nobody knows before: they are to be filled in.
        assert len(set(identities)) == (1 if cloud == "aks" else len(namespaces)), identities


def test_the_release_key_is_in_a_key_service_or_in_a_secret_of_the_signing_namespace_alone(
    rendered: dict[tuple[Cloud, Agent], tuple[Path, list[dict[str, Any]]]],
) -> None:
    schemes = {"eks": "awskms:", "gke": "gcpkms:", "aks": "azurekms:"}
    for (cloud, agent), (_, objects) in rendered.items():
        settings = {
            (o["metadata"]["namespace"], o["metadata"]["name"]): o["data"]
            for o in objects
            if o["kind"] == "ConfigMap"
        }
        uri = settings["lockgate-sign", "lockgate-settings-sign"].get("LOCKGATE_SIGNING_KEY_URI")
        holders = {
            key
            for key, spec in made(objects).items()
            if "lockgate-signing-key" in {e["remoteRef"]["key"] for e in spec.get("data", [])}
        }
        if cloud == "onprem":
            assert (uri, holders) == (None, {("lockgate-sign", "lockgate-sign")})
        else:
            assert uri is not None and uri.startswith(schemes[cloud])
            assert holders == set()
        release = settings["lockgate", "lockgate-settings-release"]
        assert (release["LOCKGATE_AGENT"], release["LOCKGATE_REMOTE"]) == (agent, REMOTE)


def test_an_entry_of_vault_is_read_by_its_field_and_one_of_a_cloud_whole(
    rendered: dict[tuple[Cloud, Agent], tuple[Path, list[dict[str, Any]]]],
) -> None:
    for (cloud, _), (_, objects) in rendered.items():
        fields = {
            entry["remoteRef"].get("property")
            for spec in made(objects).values()
            for entry in spec.get("data", [])
        }
        assert fields == ({"value"} if cloud == "onprem" else {None})


def test_the_page_lists_what_is_fetched_and_where_its_value_stands(
    rendered: dict[tuple[Cloud, Agent], tuple[Path, list[dict[str, Any]]]],
) -> None:
    listed = table("Fetched by External Secrets")
    keys: dict[Named, set[str]] = {}
    for _, objects in rendered.values():
        for name, spec in made(objects).items():
            entries = {e["remoteRef"]["key"] for e in spec.get("data", [])}
            entries |= {e["extract"]["key"] for e in spec.get("dataFrom", [])}
            keys.setdefault(name, set()).update(entries)
    assert {name: set(re.findall(r"`([^`]+)`", cell)) for name, cell in listed.items()} == {
        (re.sub("-production$", "-ENV", namespace), name): found
        for (namespace, name), found in keys.items()
    }
