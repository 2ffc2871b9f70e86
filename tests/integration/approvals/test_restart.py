"""A release waits, everything is ended, somebody approves, everything is started anew: `reconcile` goes on from Git alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from forges import TOKEN, ForgeDouble

from lockgate.adapters.git import EMBEDDED, GitOpsRepository
from lockgate.adapters.oci.package import push_model
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import REQUIRED_GATES, Decision, GateReport, GateResult
from lockgate.domain.gitops import dump_yaml
from lockgate.domain.policy import ApprovalRule, ForgePolicy, Policy, SigningPolicy
from lockgate.domain.release_state import Occupant, Phase, ReleaseState
from lockgate.domain.rollout import start
from lockgate.domain.sources import ModelRevision, Snapshot, SnapshotFile, SourceKind
from lockgate.domain.spec import CanarySpec, CanaryStep, Recipe, ServingSpec
from lockgate.domain.steps import PreparedModel
from lockgate.settings import Settings
from serving.local.cluster import LocalCluster
from tasks.driving import apply
from tasks.supply import sign_candidate
from tasks.workspace import Workspace, initialise
from tests.integration.git.repositories import git
from tests.unit.approvals.people import make_person
from tests.unit.signing.test_supply import measured, scan

ENGINE = Path(__file__).parents[1] / "serving" / "tiny_engine.py"
CANARY = CanarySpec(
    steps=(CanaryStep(weight=5, judge_latency=False, approval=True), CanaryStep(weight=50))
)


class Site:
    """A workspace whose servers are small, and which is otherwise a real one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = Settings()
        self.workspace = Workspace(self.settings)
        initialise(self.settings, layout=EMBEDDED)
        self.mara = make_person(root, "mara@example.com")
        self.policy = Policy(
            signing=SigningPolicy(
                public_keys=(self.settings.layout.public_key.read_text(),)
            ),
            # What the tests' evidence says of its age is fixed.
            max_evidence_age_days=36500,
        )  # fmt: skip
        self.push({"policy.yaml": dump_yaml(self.policy.to_data()), "approvers": self.mara.line()})

    def push(self, files: dict[str, str]) -> None:
        people = self.root / "people"
        if not people.exists():
            git("clone", "--quiet", self.settings.git_remote, str(people), at=self.root)
        git("pull", "--quiet", "--rebase", "origin", "main", at=people)
        for name, text in files.items():
            (people / name).write_text(text)
        git("commit", "--quiet", "--all", "-m", "People's files", at=people)
        git("push", "--quiet", "origin", "HEAD:main", at=people)

    def cluster(self) -> LocalCluster:
        return LocalCluster(
            self.settings.layout.cluster, remote=self.settings.git_remote, store="oci:unused",
            signing=SigningPolicy(), gates=("scan",), serving_python=Path(sys.executable),
            runtime_environment=None, snapshots=self.root / "snapshots", poll_seconds=0.5,
            cpu_pool=self.root / "cpus", agent_command=(sys.executable, str(ENGINE)),
        )  # fmt: skip

    def candidate(self, name: str) -> tuple[Candidate, Digest]:
        """A signed and attested candidate whose servers answer as `name`, and its evidence."""
        directory = self.root / name
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        file = SnapshotFile(path="config.json", size=2, digest=Digest.of_bytes(b"{}"))
        store = self.workspace.store
        image = push_model(
            store, self.settings.model_repository("tiny"), directory, Snapshot.of([file]), labels={}
        )
        control = self.root / "control"
        control.mkdir(exist_ok=True)
        candidate = Candidate(
            model=image,
            runtime=self.workspace.local_runtime("vllm"),
            serving=ServingSpec(
                served_model_name="tiny", pre_stop_seconds=1, drain_seconds=20,
                env={"TINY_NAME": name, "TINY_CONTROL": f"dir:{control}"},
            ),
        )  # fmt: skip
        made = self.workspace.stored_model(image)
        prepared = PreparedModel(
            revision=ModelRevision(repo="org/tiny", commit="a" * 40), recipe=Recipe.NONE,
            source=made, model=made, source_kind=SourceKind.HUB,
            scans=(scan(made.snapshot, "weights"), scan(image.digest, "image")),
        )  # fmt: skip
        results = tuple(
            GateResult(gate=gate, decision=Decision.PASS, reasons=("measured",))
            for gate in REQUIRED_GATES
        )
        gates = GateReport(candidate=candidate.digest, results=results)
        evidence = sign_candidate.fn(prepared, candidate, self.policy, gates, measured(candidate))
        return candidate, evidence

    def begin(self, name: str) -> None:
        """What the release flow commits once its gates have passed."""
        candidate, evidence = self.candidate(name)
        who = Occupant(
            candidate=candidate, release=f"tiny-{name}", evidence=evidence, requested_by="dev"
        )
        done = apply(
            self.workspace, "tiny", "local",
            lambda newest: start(newest, who, CANARY, datetime.now(UTC)),
        )  # fmt: skip
        assert done.committed

    def lockgate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "lockgate.cli", *arguments],
            capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        print(f"$ lockgate {' '.join(arguments)}\n{done.stdout}{done.stderr}-> {done.returncode}")
        return done

    def state(self) -> ReleaseState:
        repository = GitOpsRepository(self.settings.git_remote, self.root / "tests")
        repository.sync()
        return repository.read_state("tiny", "local")


@pytest.fixture
def site(tmp_path: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.lockgate("down")


def test_an_approval_that_lands_while_everything_is_down_is_carried_out_afterwards(
    site: Site,
) -> None:
    site.cluster().up()
    site.begin("one")
    # It returns: a release that waits keeps no process.
    assert site.lockgate("reconcile", "tiny").returncode == 0
    assert site.state().phase is Phase.AWAITING_APPROVAL
    assert site.lockgate("down").returncode == 0

    done = site.lockgate("approve", "tiny", "--key", str(site.mara.key), "--step", "1", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["approvals"] == 1
    assert site.state().phase is Phase.AWAITING_APPROVAL

    site.cluster().up()
    driver = subprocess.Popen(
        [sys.executable, "-m", "lockgate.cli", "reconcile", "--every", "1"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while site.state().phase is not Phase.STABLE:
            assert driver.poll() is None
            time.sleep(1)
    finally:
        driver.kill()
        driver.wait()
    audit = site.lockgate("audit", "tiny", "--json")
    assert audit.returncode == 0
    kinds = [commit["kind"] for commit in json.loads(audit.stdout)["commits"]]
    assert kinds == ["deploy", "await", "approve", "promote"]
    promoted = json.loads(audit.stdout)["commits"][-1]
    assert promoted["who"] == "mara@example.com"
    assert promoted["verified"] == ["approved by mara@example.com"]


def test_a_merged_pull_request_is_carried_out_by_the_next_reconcile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge = ForgeDouble("github", Path(site.settings.git_remote), site.root / "button")
    git("clone", "--quiet", site.settings.git_remote, str(forge.work), at=site.root)
    monkeypatch.setenv("LOCKGATE_FORGE_TOKEN", TOKEN)
    rule = ApprovalRule(merge_counts=True)
    policy = site.policy.model_copy(
        update={"forge": ForgePolicy.model_validate(forge.policy), "approvals": {"local": rule}}
    )
    who = site.mara.line(roles="github=mara-gh")
    site.push({"policy.yaml": dump_yaml(policy.to_data()), "approvers": who})
    try:
        site.cluster().up()
        site.begin("one")
        assert site.lockgate("reconcile", "tiny").returncode == 0
        assert site.state().phase is Phase.AWAITING_APPROVAL
        assert forge.pull.base == "main"
        assert site.lockgate("down").returncode == 0

        forge.merge("mara-gh")
        site.cluster().up()
        driver = subprocess.Popen(
            [sys.executable, "-m", "lockgate.cli", "reconcile", "--every", "1"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while site.state().phase is not Phase.STABLE:
                assert driver.poll() is None
                time.sleep(1)
        finally:
            driver.kill()
            driver.wait()
    finally:
        forge.close()
    audit = site.lockgate("audit", "tiny", "--json")
    assert audit.returncode == 0
    commits = json.loads(audit.stdout)["commits"]
    assert [c["kind"] for c in commits] == ["deploy", "await", "asks", "merge", "promote"]
    assert commits[-1]["who"] == "mara@example.com"
    assert (len(commits[-1]["told"]), commits[-1]["verified"]) == (1, [])
