"""Every gate bites, by name, and bad input leaves a clear error, an exit code and no trace in Git."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockgate.adapters.signing import generate_key
from lockgate.domain.release_state import Phase
from tests.e2e.e2e_site import MODEL, Site

Demo = tuple[Site, subprocess.CompletedProcess[str]]


@pytest.fixture
def untouched(demo: Demo) -> Site:
    """The demonstration's site; the test fails if it leaves a commit behind."""
    return demo[0]


@pytest.fixture(autouse=True)
def no_trace_in_git(demo: Demo):
    site, _ = demo
    head = site.repository().sync()
    yield
    assert site.repository().sync() == head
    assert site.state().phase is Phase.STABLE


def release(site: Site, spec: Path, **variables: str) -> tuple[int, dict[str, object], str]:
    run = site.run("release", str(spec), "--json", **variables)
    outcome = json.loads(run.stdout) if run.stdout.strip() else {}
    return run.returncode, outcome, run.stderr


def gate_decisions(outcome: dict[str, object]) -> dict[str, str]:
    gates = outcome["gates"]
    assert isinstance(gates, dict)
    return {result["gate"]: result["decision"] for result in gates["results"]}


def test_a_pickle_among_the_weights_is_refused_by_the_scan_gate(
    untouched: Site, tmp_path: Path
) -> None:
    source = Path(untouched.spec(1, "clean").read_text().split("source: dir:")[1].split("\n")[0])
    planted = tmp_path / "planted"
    shutil.copytree(source, planted)
    canary = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    (planted / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    spec = untouched.spec(1, "pickle", source=f"dir:{planted}")
    code, outcome, _ = release(untouched, spec)
    assert code == 3
    assert outcome["result"] == "refused"
    # Refused before anything was served: the other gates were never asked.
    assert gate_decisions(outcome) == {"scan": "fail"}
    assert not canary.exists()


def test_latency_under_concurrency_is_refused_by_the_benchmark_gate(untouched: Site) -> None:
    spec = untouched.spec(
        2,
        "slow",
        # One after the other, twelve at once: the median waits for six answers, and the limit is two seconds.
        serving={"max_num_seqs": 1, "drain_seconds": 17},
        benchmark={
            "profiles": [
                {
                    "name": "burst",
                    "requests": 12,
                    "prompt_tokens": 64,
                    "output_tokens": 32,
                    "concurrency": 12,
                }
            ],
        },
    )
    code, outcome, _ = release(untouched, spec)
    assert code == 3
    assert gate_decisions(outcome)["benchmark"] == "fail"
    assert gate_decisions(outcome)["evaluation"] == "pass"


def test_attestations_of_another_key_are_refused_by_verification(
    untouched: Site, tmp_path: Path
) -> None:
    generate_key(tmp_path / "other.key", tmp_path / "other.pub")
    spec = untouched.spec(2, "other-key", serving={"max_num_seqs": 24, "drain_seconds": 16})
    code, _, said = release(untouched, spec, LOCKGATE_SIGNING_KEY=str(tmp_path / "other.key"))
    assert code == 3
    assert "VerificationError" in said
    assert "no signed gate predicate" in said


def test_a_missing_trivy_is_refused_where_the_policy_demands_it(
    untouched: Site, tmp_path: Path
) -> None:
    site = Site(tmp_path / "strict")
    assert site.run("init").returncode == 0
    site.settings.layout.root.joinpath("specs").mkdir()
    spec = tmp_path / "strict.yaml"
    spec.write_text((untouched.workspace / "specs" / "release-1.yaml").read_text())
    try:
        run = site.run("release", str(spec), "--json", LOCKGATE_TRIVY=str(tmp_path / "no-trivy"))
    finally:
        site.run("down")
    assert run.returncode == 3
    outcome = json.loads(run.stdout)
    assert gate_decisions(outcome) == {"scan": "fail"}
    assert "trivy" in json.dumps(outcome["gates"]["results"][0]["reasons"])


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("dir:/nowhere/at/all", 1, "/nowhere/at/all"),
        ("ftp://model", 2, "unknown source scheme"),
        ("hf://no-slash", 2, "hf://organization/name"),
    ],
)
def test_an_unknown_source_is_a_clear_error(
    untouched: Site, source: str, code: int, said: str
) -> None:
    run = untouched.run("release", str(untouched.spec(1, "unknown", source=source)))
    assert run.returncode == code
    assert said in run.stderr


def test_a_recipe_that_cannot_be_served_here_is_refused_before_anything_is_fetched(
    untouched: Site,
) -> None:
    # The demo's own hardware may be able to, so the spec says what it would run on.
    volta = {"device": "cuda", "compute_capability": "7.0"}
    spec = untouched.spec(2, "unserved", quantization="w8a8-rtn", hardware=volta)
    for command in ("plan", "release"):
        run = untouched.run(command, str(spec))
        assert run.returncode == 2
        assert "int8 needs compute capability 7.5" in run.stdout + run.stderr


def test_a_strategy_that_stable_has_no_replica_for_is_refused_at_plan(untouched: Site) -> None:
    spec = untouched.spec(2, "borrow", serving={"max_num_seqs": 23}, canary={"strategy": "borrow"})
    run = untouched.run("plan", str(spec))
    assert run.returncode == 3
    assert "stable has one replica only and cannot lend it" in " ".join(run.stdout.split())


def test_an_unreadable_spec_names_every_wrong_field(untouched: Site, tmp_path: Path) -> None:
    spec = tmp_path / "wrong.yaml"
    spec.write_text("apiVersion: lockgate.dev/v1\nkind: Release\nmodel: Not A Label\n")
    run = untouched.run("plan", str(spec))
    assert run.returncode == 2
    for field in ("model", "source", "serving", "evaluation", "benchmark"):
        assert field in run.stderr


def test_a_model_that_never_becomes_healthy_is_an_error_with_its_log(untouched: Site) -> None:
    spec = untouched.spec(2, "unhealthy", serving={"args": ["--no-such-argument"]})
    run = untouched.run("release", str(spec))
    assert run.returncode == 1
    assert "no-such-argument" in run.stderr and "log: " in run.stderr


OWN_NAMESPACE = ("unshare", "--map-root-user", "--mount")
IN_A_SMALL_DISK = """
python=$0 disk=$1 spec=$2 remote=$3 code=0
mount -t tmpfs -o size=300m none "$disk"
"$python" -m lockgate.cli init
"$python" -m lockgate.cli release "$spec" || code=$?
"$python" -m lockgate.cli down
echo commits:
git -C "$remote" log --format=%s
exit $code
"""


def test_a_full_disk_is_a_clear_error_that_leaves_no_trace_in_git(
    untouched: Site, tmp_path: Path
) -> None:
    # A file system that holds everything but a copy of the weights, in a mount namespace that ends with the command.
    disk = tmp_path / "disk"
    disk.mkdir()
    site = Site(disk / "workspace")
    inside = [*OWN_NAMESPACE, "sh", "-ec", IN_A_SMALL_DISK, sys.executable, str(disk)]
    spec = untouched.spec(1, "full-disk")
    if subprocess.run([*OWN_NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    run = subprocess.run(
        [*inside, str(spec), str(site.settings.layout.remote)],
        env=site.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    print(run.stdout, run.stderr)
    assert run.returncode == 1
    assert "no space left" in run.stderr and "next: " in run.stderr
    commits = run.stdout.split("commits:\n")[1].splitlines()
    assert len(commits) == 1


def test_nothing_to_roll_back_is_a_usage_error(untouched: Site) -> None:
    run = untouched.run("rollback", MODEL)
    assert run.returncode == 2
    assert "nothing to roll back" in run.stderr
