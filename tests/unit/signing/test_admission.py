"""The last doors: the embedded cluster before a pod, and `lockgate verify` for whoever asks by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lockgate.adapters.signing import sign_image
from lockgate.cli.app import app
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import REQUIRED_GATES
from lockgate.domain.policy import Policy, ProvenancePolicy
from lockgate.errors import RegistryError, VerificationError
from serving.local.images import StoreAdmission

World = Any


def admit(world: World, **changes: Any) -> Path:
    config: dict[str, Any] = {
        "store": f"oci:{world.store.root}", "plain_http": False, "signing": world.policy,
        "gates": REQUIRED_GATES, "runtime_environment": Digest.of_bytes(b"environment"),
        "snapshots": world.directory / "pulled", **changes,
    }  # fmt: skip
    template = SimpleNamespace(
        runtime=world.candidate.runtime, model=world.image, candidate=world.candidate.digest,
        engine="vllm",
    )  # fmt: skip
    return StoreAdmission(SimpleNamespace(**config)).admit(template)  # type: ignore[arg-type]  # what it reads


@pytest.fixture
def released(world: World) -> World:
    world.release()
    sign_image(world.store, world.candidate.runtime, world.signer)
    return world


def test_a_pod_of_a_released_candidate_starts_however_old_its_evidence_is(released: World) -> None:
    assert (admit(released) / "config.json").read_bytes() == b"{}"


def test_a_pod_on_an_unsigned_runtime_does_not_start(world: World) -> None:
    world.release()
    with pytest.raises(VerificationError, match=r"lockgate\.local/runtime.*no signature"):
        admit(world)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"signing": "other"}, "signature"),
        ({"gates": (*REQUIRED_GATES, "red-team")}, "gate"),
        ({"signing": ProvenancePolicy(sources=("somebody/*",))}, "source"),
        ({"signing": ProvenancePolicy(builders=("https://ci.example",))}, "builder"),
        ({"runtime_environment": Digest.of_bytes(b"another")}, "runtime environment"),
    ],
)
def test_a_pod_that_the_policy_does_not_cover_does_not_start(
    released: World, changes: dict[str, Any], rule: str
) -> None:
    if changes.get("signing") == "other":
        changes = {"signing": released.other_signer.own_policy}
    elif "signing" in changes:
        policy = released.policy.model_copy(update={"provenance": changes["signing"]})
        changes = {"signing": policy}
    with pytest.raises(VerificationError, match=rule):
        admit(released, **changes)


def test_the_command_names_the_rule_that_failed_and_why(
    released: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKGATE_STORE", f"oci:{released.store.root}")
    path = tmp_path / "policy.yaml"

    def verify(*arguments: str, days: int = 36500, image: object = None) -> tuple[int, str]:
        policy = Policy(signing=released.policy, max_evidence_age_days=days)
        path.write_text(yaml.safe_dump(policy.to_data()))
        command = ["verify", str(image or released.image), "--policy", str(path), *arguments]
        done = CliRunner().invoke(app, command)
        return done.exit_code, done.output

    code, said = verify("--json")
    answer = json.loads(said)
    assert code == 0
    assert answer["ok"]
    assert answer["gate"]["candidate"] == released.candidate.digest
    code, said = verify(days=30)
    assert code == 3
    assert "FAILED age: decided by the gates at 2026-01-02" in said
    code, said = verify("--candidate", Digest.of_bytes(b"other"))
    assert code == 3
    assert "FAILED gate: no signed gate predicate for candidate" in said
    runtime = released.candidate.runtime
    assert verify("--runtime", image=runtime) == (0, "verified\n")
    code, said = verify(image=runtime)
    assert code == 3, "a signed runtime is no released model"
    assert "FAILED gate" in said
    (released.store.root / "index.json").write_text("{")
    with pytest.raises(RegistryError):
        CliRunner().invoke(
            app, ["verify", str(released.image), "--policy", str(path)], catch_exceptions=False
        )
