"""The main job, as `make demo` runs it: real model, real vLLM, Envoy, Prefect and Git, under live traffic."""

from __future__ import annotations

import hashlib
import json
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from lockgate import environments
from lockgate.domain.attestation import GATE_TYPE, PROVENANCE_TYPE, SBOM_TYPE
from lockgate.domain.digests import Digest
from lockgate.domain.release_state import Outcome, Phase
from tasks.reporting import recorded_outcomes
from tasks.supply import verifications
from tasks.workspace import Workspace
from tests.e2e.e2e_site import MODEL, Site

Demo = tuple[Site, subprocess.CompletedProcess[str]]


def outcomes(site: Site) -> dict[str, str]:
    return {r.title: r.outcome.result for r in recorded_outcomes(site.settings, MODEL, "local")}


def test_a_good_candidate_is_promoted_a_bad_one_rolled_back_a_worse_one_refused(demo: Demo) -> None:
    site, run = demo
    assert run.returncode == 0
    assert outcomes(site) == {
        "bf16": "promoted",
        "int8": "promoted",
        "int8, one at a time": "rolled_back",
        "int4": "refused",
    }


def test_the_rollback_is_a_commit_that_denylists_the_candidate_and_not_the_model(
    demo: Demo,
) -> None:
    site, _ = demo
    state = site.state()
    (rollback,) = [e for e in site.history() if e.transition == "rollback"]
    assert rollback.verdict is not None and rollback.verdict.startswith("fail sha256:")
    (denied,) = state.denylist
    assert rollback.trailers["Candidate"] == denied.candidate
    assert state.phase is Phase.STABLE and state.stable is not None
    stable = state.occupant(state.stable)
    assert stable is not None
    # The same weights, served otherwise, are what is stable.
    assert rollback.trailers["Image-Digest"] == stable.candidate.model.digest
    assert stable.candidate.digest != denied.candidate


def test_every_generation_is_one_commit_with_its_trailers(demo: Demo) -> None:
    site, _ = demo
    generations = [int(entry.trailers["Lockgate-Generation"]) for entry in site.history()]
    assert generations == list(range(1, len(generations) + 1))
    wanted = {"Lockgate-Release", "Lockgate-Phase", "Candidate", "Image-Digest", "Evidence"}
    assert all(wanted <= set(entry.trailers) for entry in site.history())


def test_what_is_attested_of_the_stable_model_is_what_really_went_into_it(
    demo: Demo, quantization_python: Path
) -> None:
    """Release 2, read as a stranger would and compared with the source's own bytes, the installed tools and the records."""
    site, _ = demo
    spec = yaml.safe_load((site.workspace / "specs" / "release-2.yaml").read_text())
    state = site.state()
    assert state.stable is not None
    stable = state.occupant(state.stable)
    assert stable is not None
    workspace = Workspace(site.settings)
    policy = site.repository().read_policy()
    model, _ = verifications(workspace, stable.candidate, policy, serves=True)
    said = {s.statement.predicate_type: s.statement.predicate for s in model.statements}

    source = Path(spec["source"].removeprefix("dir:"))
    hashed = {
        f"source/{path.relative_to(source)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in source.rglob("*")
        if path.is_file()
    }
    definition, run = said[PROVENANCE_TYPE]["buildDefinition"], said[PROVENANCE_TYPE]["runDetails"]
    inputs = {d["name"]: d["digest"]["sha256"] for d in definition["resolvedDependencies"]}
    assert {name: inputs.pop(name) for name in hashed} == hashed
    assert set(inputs) == {"source", "source-image", "environment/quantization"}
    locked = Digest(environments.environment_digest("quantization"))
    assert inputs["environment/quantization"] == locked.hex
    assert definition["externalParameters"]["quantization"] == spec["quantization"]

    ask = "import sys, json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    versions: dict[str, Any] = dict(run["builder"]["version"])
    assert versions.pop("lockgate")
    installed = subprocess.run(
        [quantization_python, "-c", ask, *versions], capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    assert versions == json.loads(installed.stdout)
    assert {"torch", "llmcompressor"} <= set(versions)

    for kind, digest in (
        *((entry["name"], entry["digest"]["sha256"]) for entry in run["byproducts"]),
        *((e["kind"], Digest(e["digest"]).hex) for e in said[GATE_TYPE]["evidence"]),
    ):
        document = workspace.records.get_document(Digest.from_hex(digest))
        if kind.endswith("weights"):
            assert document["subject"] in (
                f"sha256:{inputs['source']}", definition["internalParameters"]["snapshot"]
            )  # fmt: skip
    bom = said[SBOM_TYPE]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is None
    component = bom["metadata"]["component"]
    assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert component["modelCard"]["modelParameters"]["modelArchitecture"] == "LlamaForCausalLM"
    assert component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]


def test_no_request_failed_or_was_cut_short_in_any_transition(demo: Demo) -> None:
    site, _ = demo
    rows = site.traffic()
    assert [row for row in rows if not row["ok"]] == []
    seconds = rows[-1]["start"] - rows[0]["start"]
    assert len(rows) / seconds >= 2
    assert sum(row["streaming"] for row in rows) * 2 >= len(rows)
    assert {row["slot"] for row in rows} == {"a", "b"}


def test_stable_was_not_restarted_by_the_rollback(demo: Demo) -> None:
    site, _ = demo
    state = site.state()
    rollback = next(e for e in site.history() if e.transition == "rollback")
    promoted = [e for e in site.history() if e.transition == "promote" and e.at < rollback.at][-1]
    before = site.repository().state_at(promoted.commit, MODEL, "local")
    assert before.stable == state.stable
    from tasks.workspace import Workspace

    assert state.stable is not None
    slot = Workspace(site.settings).cluster().slot_status(MODEL, state.stable)
    assert slot is not None and slot.ready == 1 and slot.restarts == 0


def test_what_the_gates_refuse_leaves_no_trace_in_git(demo: Demo) -> None:
    site, _ = demo
    refused = [
        r.outcome
        for r in recorded_outcomes(site.settings, MODEL, "local")
        if r.outcome.result == "refused"
    ]
    assert [r.gates.refusals[0].split(":")[0] for r in refused] == ["evaluation"]
    named = {entry.trailers["Candidate"] for entry in site.history()}
    assert named.isdisjoint({r.candidate.digest for r in refused})


def test_what_was_not_scanned_is_said_to_be_not_scanned(demo: Demo) -> None:
    site, _ = demo
    for recorded in recorded_outcomes(site.settings, MODEL, "local"):
        (scan,) = [r for r in recorded.outcome.gates.results if r.gate == "scan"]
        trivy = [row for row in scan.measurements if row.get("scanner") == "trivy"]
        scanned = all(row.get("status") == "completed" for row in trivy)
        assert scanned or any("NOT SCANNED" in reason for reason in scan.reasons)


def test_weights_only_rise_and_stable_keeps_the_rest(demo: Demo) -> None:
    site, _ = demo
    repository = site.repository()
    states = [repository.state_at(e.commit, MODEL, "local") for e in site.history()]
    for before, after in pairwise(states):
        if before.phase is Phase.CANARY and after.phase is Phase.CANARY:
            assert after.weight > before.weight
        assert sum(after.weights().values()) in (0, 100)


def test_a_second_run_finds_everything_done(demo: Demo) -> None:
    site, _ = demo
    before = site.history()
    again = site.run("demo", "--keep", timeout=300)
    assert again.returncode == 0
    assert site.history() == before
    assert again.stdout.count("done by an earlier run") == 4


def test_a_rolled_back_candidate_is_never_released_again(demo: Demo) -> None:
    site, _ = demo
    before = site.history()
    again = site.run("release", str(site.workspace / "specs" / "release-3.yaml"))
    assert again.returncode == 3
    assert "denylisted" in again.stderr
    assert site.history() == before


def test_the_outcome_names_the_last_release(demo: Demo) -> None:
    site, _ = demo
    last = site.state().last
    assert last is not None and last.outcome is Outcome.ROLLED_BACK
