"""Every cloud, agent, environment, component and admission engine: laid down, rendered, and checked strictly."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from lockgate.adapters.git import Admission, Agent, Cloud, LaidDown, Layout
from lockgate.domain.spec import Resources
from lockgate.errors import RenderingError, UsageError
from lockgate.settings import Settings
from tasks import workspace
from tasks.workspace import initialise
from tests.integration.git.layouts import PEM, SERVED, Renderer, lay_files, slot_objects, taken_up

ENVIRONMENTS = ("staging", "production")
URL = "ssh://git@git.acme.test/platform/gitops.git"
CLOUDS: tuple[Cloud, ...] = get_args(Cloud)
AGENTS: tuple[Agent, ...] = ("argocd", "flux")
ENGINES: tuple[Admission, ...] = get_args(Admission)
OPTIONAL = ("mtls", "rate-limit")
GPU = Resources(cpu=8, memory="64Gi", gpu=1)


@pytest.fixture(scope="module")
def renderer(kubectl: Path) -> Renderer:
    return Renderer(kubectl)


@pytest.fixture(scope="module")
def repositories(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[Cloud, Agent, Admission], Path]:
    """A repository for each cloud and agent, and for each cloud and admission engine; to be read only."""
    root = tmp_path_factory.mktemp("layouts")
    choices = [
        choice
        for choice in itertools.product(CLOUDS, AGENTS, ENGINES)
        if choice[2] == "kyverno" or choice[1] == "flux"
    ]
    return {
        (cloud, agent, engine): lay_files(
            root / f"{cloud}-{agent}-{engine}",
            Layout(ENVIRONMENTS, agent, cloud, engine, remote=URL, images="registry.acme.test/ml"),
        )
        for cloud, agent, engine in choices
    }


def test_every_overlay_of_every_choice_renders_and_is_valid(
    repositories: dict[tuple[Cloud, Agent, Admission], Path], renderer: Renderer
) -> None:
    seen: set[str] = set()
    faults: list[str] = []
    rendered = 0
    for root in repositories.values():
        overlays = renderer.checks.overlays(root)
        for environment, count in itertools.product(ENVIRONMENTS, range(len(OPTIONAL) + 1)):
            for chosen in itertools.combinations(OPTIONAL, count):
                overlays[f"{environment}+{'+'.join(chosen)}"] = {
                    "resources": [f"../platform/environments/{environment}"],
                    "components": [f"../platform/components/{name}" for name in chosen],
                }
        for kustomization in overlays.values():
            found = renderer.render(root, kustomization)
            rendered += 1
            faults += renderer.checks.check(found, root / "schemas", seen)
        for path in renderer.checks.plain_files(root):
            documents = list(yaml.safe_load_all(path.read_text()))
            faults += renderer.checks.check(documents, root / "schemas", seen)
    assert faults == []
    assert rendered > renderer.distinct > 30
    assert len(seen) > 100


def claimed(found: list[dict[str, Any]]) -> None:
    """Every volume that a pod claims is there."""
    names = re.findall(r'"claimName": "([^"]+)"', json.dumps(found))
    claims = [o["metadata"]["name"] for o in found if o["kind"] == "PersistentVolumeClaim"]
    assert set(names) == set(claims)


def admitted(root: Path) -> set[tuple[str, str]]:
    """Group and kind of what the models' project may make."""
    (project,) = (
        found
        for found in yaml.safe_load_all((root / "clusters/production/argocd/projects.yaml").read_text())
        if found["metadata"]["name"] == "lockgate-models-production"
    )  # fmt: skip
    return {(e["group"], e["kind"]) for e in project["spec"]["namespaceResourceWhitelist"]}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_slot_of_every_cloud_is_valid_with_every_engine_and_component_and_its_project_admits_it(
    tmp_path: Path, renderer: Renderer, kubectl: Path, cloud: Cloud
) -> None:
    root = lay_files(tmp_path / "r", Layout(("production",), "argocd", cloud, remote=URL))
    seen: set[str] = set()
    made: set[tuple[str, str]] = set()

    def checked(resources: Resources, **serving: Any) -> list[dict[str, Any]]:
        found = slot_objects(root, "production", resources, kubectl, **serving)
        assert renderer.checks.check(found, root / "schemas", seen) == []
        made.update((o["apiVersion"].rpartition("/")[0], o["kind"]) for o in found)
        return found

    pods = [
        next(o for o in checked(size) if o["kind"] == "Deployment")["spec"]["template"]["spec"]
        for size in (Resources(), GPU)
    ]
    placed = ("nodeSelector", "affinity", "runtimeClassName", "tolerations")
    assert not any(key in pods[0] for key in placed), "a CPU candidate goes wherever there is room"
    assert any(key in pods[1] for key in placed[:3])
    assert {t["key"] for t in pods[1]["tolerations"]} == (
        {"nvidia.com/gpu", "sku"} if cloud == "aks" else {"nvidia.com/gpu"}
    )
    components = sorted(p.name for p in (root / "apps/vllm/components").iterdir())
    # Every slot above has these two.
    for component in set(components) - {"gpu", "read-only-root"}:
        with taken_up(root, "production", component):
            for served, serving in SERVED.items():
                if (served, component) == ("kserve-serverless", "persistent-cache"):
                    with pytest.raises(RenderingError, match="share a slot's volume"):
                        checked(GPU, **serving)
                else:
                    claimed(checked(GPU, **serving))
    assert made == admitted(root), "what is rendered and nothing else"


def test_environments_of_a_repository_differ_by_their_names_alone(
    repositories: dict[tuple[Cloud, Agent, Admission], Path], renderer: Renderer
) -> None:
    for root in repositories.values():
        staging, production = (
            json.dumps(renderer.render(root, {"resources": [f"../platform/environments/{e}"]}))
            for e in ENVIRONMENTS
        )
        assert staging.replace("staging", "production") == production


@pytest.mark.parametrize("engine", ENGINES)
def test_the_release_key_and_the_registry_are_in_every_admission_policy(
    repositories: dict[tuple[Cloud, Agent, Admission], Path], renderer: Renderer, engine: Admission
) -> None:
    root = repositories["eks", "flux", engine]
    text = json.dumps(renderer.render(root, {"resources": ["../clouds/eks/cluster"]}))
    assert "replaced by lockgate init" not in text
    assert "registry.example.com" not in text
    assert "registry.acme.test/ml/runtimes/" in text
    assert (json.dumps(PEM)[1:-1] in text) is (engine != "none")
    kinds = {"kyverno": "ImageValidatingPolicy", "policy-controller": "ClusterImagePolicy"}
    assert {k for e, k in kinds.items() if f'"{k}"' in text} == {
        k for e, k in kinds.items() if e == engine
    }
    assert "ValidatingAdmissionPolicy" in text


def test_every_volume_that_may_be_asked_for_is_encrypted_and_models_may_ask_for_none(
    repositories: dict[tuple[Cloud, Agent, Admission], Path], renderer: Renderer
) -> None:
    own_key = {
        "eks": {"encrypted": "true"},
        "gke": {"disk-encryption-kms-key"},
        "aks": {"diskEncryptionSetID"},
        "onprem": {"encrypted": "true"},
    }
    for (cloud, _, _), root in repositories.items():
        found = renderer.render(root, {"resources": [f"../clouds/{cloud}/cluster"]})
        [storage] = [o for o in found if o["kind"] == "StorageClass"]
        wanted = own_key[cloud]
        assert set(wanted) <= set(storage["parameters"])
        if isinstance(wanted, dict):
            assert wanted.items() <= storage["parameters"].items()
        environment = renderer.render(root, {"resources": ["../platform/environments/production"]})
        [quota] = [o for o in environment if o["kind"] == "ResourceQuota"]
        assert quota["spec"]["hard"]["persistentvolumeclaims"] == "0"


@pytest.mark.parametrize("monitoring", [True, False])
def test_scrapes_and_rules_are_laid_down_once_in_a_cluster_where_the_operator_is_and_init_says_so(
    tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch, monitoring: bool
) -> None:
    layout = Layout(ENVIRONMENTS, "argocd", "gke", remote=URL, monitoring=monitoring)
    root = lay_files(tmp_path / "r", layout)
    found = renderer.render(root, {"resources": ["../clouds/gke/cluster"]})
    made = sorted(
        (o["kind"], o["metadata"]["name"]) for o in found if "monitoring" in o["apiVersion"]
    )
    assert made == monitoring * [
        ("PodMonitor", "gateway"), ("PodMonitor", "model-servers"), ("PodMonitor", "release-states"),
        ("PrometheusRule", "lockgate-alerts"), ("PrometheusRule", "lockgate-recording"),
    ]  # fmt: skip
    for environment in ENVIRONMENTS:
        own = renderer.render(root, {"resources": [f"../platform/environments/{environment}"]})
        assert not [o for o in own if "monitoring" in o["apiVersion"]]
    monkeypatch.setattr(workspace, "lay_down", lambda *_, **__: LaidDown("c" * 40, created=True))
    said = initialise(Settings(workspace=tmp_path / "workspace"), layout=layout)
    (line,) = [text for text in said if "alerts" in text]
    assert line.startswith("no ") is not monitoring
    assert "clouds/gke/cluster" in line


def agent_objects(root: Path) -> list[dict[str, Any]]:
    return [
        document
        for path in sorted((root / "clusters").rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def test_nothing_about_models_waits_for_health_and_nothing_prunes_a_route(
    repositories: dict[tuple[Cloud, Agent, Admission], Path],
) -> None:
    for (_, agent, _), root in repositories.items():
        found = {(o["kind"], o["metadata"]["name"]): o for o in agent_objects(root)}
        for environment in ENVIRONMENTS:
            for part, prune in (("routes", False), ("models", True)):
                name = f"lockgate-{part}-{environment}"
                if agent == "flux":
                    spec = found["Kustomization", name]["spec"]
                    assert (spec["wait"], spec["prune"]) == (False, prune)
                    assert not {"healthChecks", "healthCheckExprs", "dependsOn"} & set(spec)
                    assert spec["deletionPolicy"] == "Orphan"
                    assert spec["serviceAccountName"] == f"lockgate-models-{environment}"
                    source = found["GitRepository", spec["sourceRef"]["name"]]["spec"]
                    assert source["verify"]["mode"] == "HEAD"
                else:
                    application = found["Application", name]
                    assert "finalizers" not in application["metadata"]
                    sync = application["spec"]["syncPolicy"]
                    assert sync["automated"]["prune"] is prune
                    assert not any("PruneLast" in option for option in sync["syncOptions"])
                    paths = application["metadata"]["annotations"][
                        "argocd.argoproj.io/manifest-generate-paths"
                    ]
                    assert f"/models/*/{environment}/manifests/" in paths
        assert "sync-wave" not in json.dumps(list(found.values()))
        receivers = [o for (kind, _), o in found.items() if kind == "Receiver"]
        assert len(receivers) == (len(ENVIRONMENTS) if agent == "flux" else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent": "flux"}, "which one"),
        ({"agent": "embedded", "cloud": "eks"}, "embedded cluster"),
        ({"environments": ("a", "a"), "agent": "embedded"}, "each once"),
        ({"environments": (), "agent": "embedded"}, "each once"),
        ({"agent": "embedded", "monitoring": True}, "no Prometheus operator"),
        ({"environments": ("../etc",), "agent": "embedded"}, "DNS label"),
    ],
)
def test_a_repository_for_nothing_in_particular_is_not_laid_down(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Layout(**{"environments": ("prod",), **options})


def validate(root: Path, kubectl: Path, bin_directory: Path) -> subprocess.CompletedProcess[str]:
    bin_directory.mkdir(exist_ok=True)
    if not (bin_directory / "kubectl").exists():
        (bin_directory / "kubectl").symlink_to(kubectl)
    environment = {
        **os.environ,
        "PATH": f"{bin_directory}:/usr/bin:/bin",
        "PYTHON": sys.executable,
    }
    return subprocess.run(
        [str(root / "scripts/validate.sh")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_repositorys_own_check_passes_then_finds_tags_unknown_kinds_and_slips_and_skips_nothing(
    tmp_path: Path, kubectl: Path
) -> None:
    root = lay_files(tmp_path / "r", Layout(("prod",), "argocd", "onprem", remote=URL))
    done = validate(root, kubectl, tmp_path / "bin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to fill in  clouds/onprem/secrets/secretstore.yaml" in done.stdout
    # Each kustomization and component, and each file of whole objects, has a line of its own: nothing is left out.
    for path in (
        p
        for top in ("apps", "clouds", "clusters", "platform")
        for p in (root / top).rglob("*.yaml")
    ):
        what = path.parent if path.name == "kustomization.yaml" else path
        assert f"valid   {what.relative_to(root)}: " in done.stdout
    # A component that renders an unknown kind, used by nobody yet.
    odd = root / "apps/vllm/components/odd"
    odd.mkdir()
    (odd / "kustomization.yaml").write_text("kind: Component\nresources: [thing.yaml]\n")
    thing = {"apiVersion": "example.dev/v1", "kind": "Thing", "metadata": {"name": "t"}}
    (odd / "thing.yaml").write_text(yaml.safe_dump(thing))
    done = validate(root, kubectl, tmp_path / "bin")
    assert done.returncode == 1
    assert "FAILED  apps/vllm/components/odd: " in done.stdout
    assert "example.dev/v1 Thing is of no known kind" in done.stdout
    for directory in ("apps", "platform", "clouds"):
        shutil.rmtree(root / directory)
    manifests = root / "models/m/prod/manifests"
    manifests.mkdir(parents=True)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    slips = {
        "tagged": {**pod, "spec": {"containers": [{"name": "c", "image": "vllm:latest"}]}},
        "unknown": {"apiVersion": "example.dev/v1", "kind": "Thing", "metadata": {"name": "t"}},
        "misspelt": {**pod, "spec": {"containers": [], "nodeSelectors": {}}},
        "nothing": "just text",
    }
    for name, slip in slips.items():
        (manifests / f"{name}.yaml").write_text(yaml.safe_dump(slip))
    done = validate(root, kubectl, tmp_path / "bin")
    assert done.returncode == 1
    for name, said in {
        "tagged": "without a digest: vllm:latest",
        "unknown": "of no known kind",
        "misspelt": "nodeSelectors",
        "nothing": "no Kubernetes object",
    }.items():
        assert f"FAILED  models/m/prod/manifests/{name}.yaml" in done.stdout
        assert said in done.stdout, name
    assert "4 failed" in done.stdout
