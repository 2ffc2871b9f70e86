"""The pod that tells a Prometheus what Git says: laid down with Lockgate's image, and all that has to fit it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from typer.testing import CliRunner

from lockgate.adapters.git import Cloud, LaidDown, Layout
from lockgate.domain.images import ImageRef
from lockgate.errors import UsageError
from lockgate.settings import Settings
from tasks import workspace
from tasks.workspace import initialise
from tests.integration.git.layouts import Renderer, lay_files

IMAGE = ImageRef.parse("registry.acme.test/lockgate@sha256:" + "1" * 64)
REMOTE = "ssh://git@git.acme.test/platform/gitops.git"
Objects = dict[tuple[str, str], dict[str, Any]]


def layout(cloud: Cloud, image: ImageRef | None = IMAGE) -> Layout:
    return Layout(
        ("production",), "flux", cloud, remote=REMOTE, monitoring=True, lockgate_image=image
    )


@pytest.fixture(scope="module")
def renderer(kubectl: Path) -> Renderer:
    return Renderer(kubectl)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, renderer: Renderer) -> Objects:
    """A cluster's objects, all of them valid by the repository's own strict checks, in every cloud."""
    objects: Objects = {}
    for cloud in get_args(Cloud):
        root = lay_files(tmp_path_factory.mktemp("states") / "r", layout(cloud))
        items = renderer.render(root, {"resources": [f"../clouds/{cloud}/cluster"]})
        assert renderer.checks.check(items, root / "schemas", set()) == []
        objects = {
            (o["kind"], o["metadata"]["name"]): o
            for o in items
            if o["metadata"].get("namespace", "lockgate") == "lockgate"
        }
        assert ("Deployment", "lockgate-metrics") in objects, cloud
    return objects


@pytest.fixture(scope="module")
def template(found: Objects) -> dict[str, Any]:
    made: dict[str, Any] = found["Deployment", "lockgate-metrics"]["spec"]["template"]
    return made


def test_its_image_and_repository_are_those_that_init_was_given(template: dict[str, Any]) -> None:
    (container,) = template["spec"]["containers"]
    assert container["image"] == str(IMAGE)
    environment = {e["name"]: e["value"] for e in container["env"]}
    assert environment["LOCKGATE_REMOTE"] == REMOTE
    assert not template["spec"].get("imagePullSecrets")


def test_its_arguments_are_a_command_of_lockgates_that_listens_where_it_is_scraped(
    template: dict[str, Any], found: Objects
) -> None:
    (container,) = template["spec"]["containers"]
    program, name, *arguments = container["args"]
    assert program == "lockgate"
    app = importlib.import_module("lockgate.cli.app").app
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    host, _, port = command.make_context(name, list(arguments)).params["listen"].rpartition(":")
    assert host == "0.0.0.0"
    (declared,) = container["ports"]
    assert declared["containerPort"] == int(port)
    (endpoint,) = found["PodMonitor", "release-states"]["spec"]["podMetricsEndpoints"]
    (served,) = found["Service", "lockgate-metrics"]["spec"]["ports"]
    assert endpoint["port"] == declared["name"] == served["targetPort"]
    for selector in (
        found["PodMonitor", "release-states"]["spec"]["selector"]["matchLabels"],
        found["Service", "lockgate-metrics"]["spec"]["selector"],
        found["Deployment", "lockgate-metrics"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy", "from-prometheus"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= template["metadata"]["labels"].items()
    # What docs/access.md calls the state metrics is a pod with these labels.
    assert template["metadata"]["labels"]["lockgate.dev/step"] == "metrics"


def test_it_keeps_to_the_restricted_profile_with_no_token_and_a_root_that_cannot_be_written(
    template: dict[str, Any], found: Objects
) -> None:
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for volume in spec["volumes"]:
        assert volume.keys() - {"name"} <= {"emptyDir", "secret"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    written = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert written == {"/workspace", "/tmp"}
    environment = {e["name"]: e["value"] for e in container["env"]}
    assert all(environment[n].startswith("/workspace") for n in ("HOME", "LOCKGATE_WORKSPACE"))
    account = found["ServiceAccount", spec["serviceAccountName"]]
    assert account["automountServiceAccountToken"] is spec["automountServiceAccountToken"] is False


def test_no_admission_policy_is_about_its_namespace(found: Objects) -> None:
    """They hold for models' namespaces and for lockgate-tests; a pod of the pipeline is in none of them."""
    labels = {
        "kubernetes.io/metadata.name": "lockgate",
        **found["Namespace", "lockgate"]["metadata"]["labels"],
    }
    assert "policy.sigstore.dev/include" not in labels
    selectors = [
        o["spec"]["matchResources"]["namespaceSelector"]["matchLabels"]
        for (kind, _), o in found.items()
        if kind == "ValidatingAdmissionPolicyBinding"
    ]
    selectors += [
        o["spec"]["matchConstraints"]["namespaceSelector"]["matchLabels"]
        for (kind, _), o in found.items()
        if kind == "ImageValidatingPolicy"
    ]
    assert len(selectors) >= 7
    assert not any(selector.items() <= labels.items() for selector in selectors)


@pytest.mark.parametrize("image", [IMAGE, None])
def test_without_an_image_it_is_not_applied_and_init_says_so_and_steps_have_no_image_either(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch, image: ImageRef | None
) -> None:
    given = image is not None
    root = lay_files(tmp_path / "r", layout("eks", image))
    items = renderer.render(root, {"resources": ["../clouds/eks/cluster"]})
    assert any(o["metadata"]["name"] == "lockgate-metrics" for o in items) is given
    (pool,) = yaml.safe_load_all((root / "platform/prefect/workpool.yaml").read_text())
    variables = json.loads(pool["data"]["baseJobTemplate.json"])["variables"]["properties"]
    assert (variables["image"]["default"] == str(IMAGE)) is given
    monkeypatch.setattr(workspace, "lay_down", lambda *_, **__: LaidDown("c" * 40, created=True))
    said = initialise(Settings(workspace=tmp_path / "w"), layout=layout("eks", image))
    (line,) = [text for text in said if "release states" in text]
    assert line.startswith("no ") is not given
    assert "clouds/eks/cluster" in line


def test_the_embedded_cluster_has_no_use_for_an_image() -> None:
    with pytest.raises(UsageError, match="where it is installed"):
        Layout(("local",), "embedded", lockgate_image=IMAGE)


def test_an_image_by_tag_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "w"))
    app = importlib.import_module("lockgate.cli.app").app
    options = [
        "--cloud",
        "eks",
        "--agent",
        "flux",
        "--lockgate-image",
        "registry.acme.test/lockgate:1",
    ]
    done = CliRunner().invoke(app, ["init", *options])
    assert isinstance(done.exception, UsageError)
    assert "without a digest" in done.exception.message
    assert not (tmp_path / "w").exists()
