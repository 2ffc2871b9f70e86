"""How a candidate is brought up for evaluation and benchmark: one interface, whatever runs it.

`serving.ephemeral` runs a process on this machine, `serving.kubernetes_job` a Job in a cluster. Whoever measures knows
neither: it is given an endpoint that has answered and is warm, and that is gone afterwards.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Fingerprint
from lockgate.domain.spec import ServingSpec


@dataclass(frozen=True)
class Endpoint:
    """A server that is up and has answered. `base_url` has no trailing `/v1`."""

    base_url: str
    model_name: str
    fingerprint: Fingerprint
    log: Path
    """Where the server's log is, or will be once the server has ended."""
    exclusive_cores: bool
    """Whether no other server that Lockgate knows of ran on the same cores when this one started."""
    pid: int | None = None
    """Of the supervising process, whose only child the server is; none where it runs elsewhere."""

    @property
    def metrics_url(self) -> str:
        return f"{self.base_url}/metrics"


class CandidateServer(Protocol):
    """Serves candidates for measurements, one context each."""

    def hardware(self, serving: ServingSpec) -> Digest:
        """Names the hardware that `serve` would use, before anything runs: measurements are looked up by it."""

    def serve(self, candidate: Candidate, *, log_path: Path) -> AbstractContextManager[Endpoint]:
        """The candidate's server until the context ends; its log is kept in `log_path`.

        Entering raises `ServingError`, with the end of the log, if the server dies, does not become ready, or answers
        nonsense. Whatever happens, leaving removes the server; if this process is killed, something else removes it.
        """
