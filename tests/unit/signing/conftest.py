from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.oci.layout import LayoutStore
from lockgate.adapters.oci.package import push_model
from lockgate.adapters.oci.runtime import push_runtime
from lockgate.adapters.signing import KeySigner, attest, generate_key, sign_image, verify
from lockgate.adapters.signing.verification import VerificationReport
from lockgate.domain.attestation import (
    GATE_TYPE,
    PROVENANCE_TYPE,
    GatePredicate,
    Materials,
    gate_predicate,
    provenance,
)
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import REQUIRED_GATES, Decision, GateReport, GateResult
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import BUILDER, SigningPolicy
from lockgate.domain.sources import ModelRevision, Snapshot, SnapshotFile, SourceKind
from lockgate.domain.spec import Recipe, ServingSpec
from tests.unit.signing.local_sigstore import LocalSigstore

TIME = "2026-01-02T03:04:05+00:00"


class AnybodysStore(LayoutStore):
    """Takes any manifest, as a directory does into which others write."""

    def _require_parts(self, digest: Digest, body: bytes) -> None:
        return


@dataclass
class World:
    """A store with a candidate in it, a release key and the policy that names it."""

    directory: Path
    store: LayoutStore
    candidate: Candidate
    signer: KeySigner
    other_signer: KeySigner
    policy: SigningPolicy = field(init=False)

    def __post_init__(self) -> None:
        self.policy = SigningPolicy(public_keys=(self.signer.public_pem,))

    @property
    def image(self) -> ImageRef:
        return self.candidate.model

    def push(self, content: bytes) -> ImageRef:
        """A model image of one file."""
        directory = self.directory / Digest.of_bytes(content).short
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_bytes(content)
        file = SnapshotFile(path="config.json", size=len(content), digest=Digest.of_bytes(content))
        snapshot = Snapshot.of([file])
        return push_model(self.store, "lockgate.local/demo", directory, snapshot, labels={})

    def report(self, candidate: Candidate | None = None, **decisions: Decision) -> GateReport:
        """A gate report, passed but for the decisions given by gate."""
        results = tuple(
            GateResult(
                gate=gate, decision=decisions.get(gate, Decision.PASS), reasons=("measured",)
            )
            for gate in REQUIRED_GATES
        )
        return GateReport(candidate=(candidate or self.candidate).digest, results=results)

    def gate(
        self,
        candidate: Candidate | None = None,
        report: GateReport | None = None,
        decided_at: str = TIME,
        scanned_at: str | None = None,
    ) -> GatePredicate:
        candidate = candidate or self.candidate
        return gate_predicate(
            candidate,
            policy=Digest.of_bytes(b"policy"),
            evidence={"evaluation": Digest.of_bytes(b"scores")},
            report=report or self.report(candidate),
            decided_at=decided_at,
            scanned_at=scanned_at,
        )

    def provenance(self, builder: str = BUILDER, repo: str = "org/demo") -> dict[str, Any]:
        weights = SnapshotFile(path="model.gguf", size=1, digest=Digest.of_bytes(b"w"))
        return provenance(
            materials=Materials(
                revision=ModelRevision(repo=repo, commit="0" * 40),
                kind=SourceKind.HUB,
                source=Snapshot.of([weights]),
                environments={"quantization": Digest.of_bytes(b"lock")},
                containers={"quantize": self.candidate.runtime},
            ),
            snapshot=Digest.of_bytes(b"snapshot"),
            recipe=Recipe.NONE,
            builder=builder,
            versions={"lockgate": "0.1.0"},
            invocation="release-1",
        )

    def release(self) -> None:
        """Everything a released image carries."""
        sign_image(self.store, self.image, self.signer)
        attest(self.store, self.image, self.signer, PROVENANCE_TYPE, self.provenance())
        attest(self.store, self.image, self.signer, GATE_TYPE, self.gate())

    def verify(self, **changes: Any) -> VerificationReport:
        arguments: dict[str, Any] = {
            "candidate": self.candidate.digest,
            "require_gates": REQUIRED_GATES,
            **changes,
        }
        policy = arguments.pop("policy", self.policy)
        return verify(self.store, arguments.pop("image", self.image), policy, **arguments)


@pytest.fixture
def make_key(tmp_path: Path) -> Callable[[str], KeySigner]:
    def make(name: str) -> KeySigner:
        generate_key(tmp_path / name, tmp_path / f"{name}.pub")
        return KeySigner(tmp_path / name)

    return make


@pytest.fixture
def world(tmp_path: Path, make_key: Callable[[str], KeySigner]) -> World:
    store = AnybodysStore(tmp_path / "store")
    runtime = push_runtime(
        store,
        "lockgate.local/runtime",
        environment_digest=Digest.of_bytes(b"environment"),
        lock_file=b"vllm\n",
        engine="vllm",
    )
    candidate = Candidate(
        model=ImageRef(repository="lockgate.local/demo", digest=Digest.of_bytes(b"")),
        runtime=runtime,
        serving=ServingSpec(served_model_name="demo"),
    )
    made = World(tmp_path, store, candidate, make_key("release"), make_key("other"))
    made.candidate = candidate.model_copy(update={"model": made.push(b"{}")})
    return made


@pytest.fixture
def sigstore(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalSigstore]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    instance = LocalSigstore()
    yield instance
    instance.close()
