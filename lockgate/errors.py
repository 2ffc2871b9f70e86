"""The one error tree: everything Lockgate raises on purpose is a `LockgateError`.

An error speaks to an operator: what happened, where the log is, what to do next. Foreign errors are translated once, at
the adapter that met them, and stay chained as the cause. The exit code is part of the type so that the command line, a
flow and a test agree on what "refused" means.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3


class LockgateError(Exception):
    """Base of all errors. `message` says what happened, `hint` what to do next, `log` where to read more, `step` in which
    step of a release it was, once that is known."""

    exit_code = EXIT_FAILURE
    advice: ClassVar[str] = (
        "run the same command again: it goes on where it stopped; if it fails alike, read its log"
    )
    """What to try where the error has no hint of its own."""

    def __init__(
        self, message: str, *, hint: str | None = None, log: Path | str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log
        self.step: str | None = None

    @property
    def next_step(self) -> str:
        """What to try next: what this error says, else what is to be said of its kind."""
        return self.hint or self.advice

    def diagnostics(self) -> str:
        """The message for a person, with the log and the next step where there are any."""
        lines = [self.message]
        if self.log is not None:
            lines.append(f"log: {self.log}")
        if self.hint is not None:
            lines.append(f"next: {self.hint}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.diagnostics()


class UsageError(LockgateError):
    """What the user gave cannot be used: a malformed spec, an unknown model, a bad argument."""

    advice = "correct what was given: `lockgate COMMAND --help`, and docs/spec.md for documents"
    exit_code = EXIT_USAGE


class Refused(LockgateError):
    """A gate, a policy or a verdict said no. Never retried: asking again does not change a verdict."""

    advice = "read the reasons with `lockgate explain`; asking again does not change them"
    exit_code = EXIT_REFUSED


class VerificationError(Refused):
    """A signature, an attestation or an identity is missing or wrong."""

    advice = "`lockgate verify IMAGE` names each rule that failed; release it again if the key or policy changed"


class GateRefused(Refused):
    """An offline gate did not pass. `gate` is its name."""

    advice = "`lockgate explain` shows what was measured; release another candidate"

    def __init__(
        self, gate: str, message: str, *, hint: str | None = None, log: Path | str | None = None
    ) -> None:
        super().__init__(message, hint=hint, log=log)
        self.gate = gate


class SourceError(LockgateError):
    """A model source cannot be resolved or read."""

    advice = "check the name, the revision, the token (HF_TOKEN) and the network, then run it again"


class IntegrityError(LockgateError):
    """Bytes are not those whose digest was recorded."""

    advice = "do not use these files: find out who changed them, remove them and fetch again"


class StorageFull(LockgateError):
    """A disk or a quota has no room left. Never retried: somebody has to make room."""

    advice = (
        "make room (`lockgate gc` says what could go), then run it again: what has arrived is used"
    )


class ScannerError(LockgateError):
    """A scanner could not do its work (that is not a finding)."""

    advice = "read the scanner's log; a scan that failed is never a pass"


class QuantizationError(LockgateError):
    """The quantization process failed or wrote something unusable."""

    advice = "read its log; try more memory, or another recipe (docs/quantization.md)"


class RegistryError(LockgateError):
    """An OCI registry or layout refused, broke off or answered nonsense."""

    advice = (
        "check the address, the credentials (Docker's config.json) and the disk, then run it again"
    )


class SigningError(LockgateError):
    """A signature could not be made."""

    advice = (
        "check the key file, its passphrase (LOCKGATE_SIGNING_KEY_PASSPHRASE) or the OIDC identity"
    )


class ServingError(LockgateError):
    """A model server could not be started, never became healthy, or died."""

    advice = "read the end of the server's log: it names the cause; then `serving` in the spec"


class EvaluationError(LockgateError):
    """The evaluation harness failed (a low score is not an error)."""

    advice = "read the harness's log; a dataset or an answer may be missing"


class BenchmarkError(LockgateError):
    """The load generator failed (a slow model is not an error)."""

    advice = "read the load generator's log, and the server's beside it"


class RenderingError(LockgateError):
    """Manifests could not be rendered or are invalid."""

    advice = "run scripts/validate.sh in the GitOps repository"


class GitError(LockgateError):
    """The GitOps repository cannot be read or written."""

    advice = "check the remote and its credentials, then run it again: nothing was half written"


class PushRejected(GitError):
    """The remote moved on while a transition was written, more often than the retry limit."""

    advice = "run it again; if it goes on, look for another writer of the branch"


class ForgeError(LockgateError):
    """The host of pull requests does not answer, refuses, or answers nonsense: nothing is decided by that."""

    advice = "check `forge` in policy.yaml, LOCKGATE_FORGE_TOKEN and the host; signed approvals need none of them"


class DeliveryError(LockgateError):
    """A webhook delivery could not be kept, or not be handed over to Prefect."""

    advice = "check the disk of the workspace's hooks/, Prefect's API and its deployments"


class MetricsError(LockgateError):
    """A metrics endpoint is absent, hangs or answers nonsense."""

    advice = 'ask the endpoint by hand; docs/operations.md, "Metrics outage"'


class ClusterError(LockgateError):
    """The cluster (embedded or Kubernetes) cannot be observed or started."""

    advice = "`lockgate up`, then read the log of the agent"


class ReportError(LockgateError):
    """A report could not be written."""

    advice = "give another path with --out"


class EnvironmentMissing(LockgateError):
    """A Python environment or an external program that a step needs is not installed."""

    advice = "install what the message names (docs/environments.md)"
