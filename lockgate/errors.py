"""The one error tree: everything Lockgate raises on purpose is a `LockgateError`.

An error speaks to an operator: what happened, where the log is, what to do next. Foreign errors are translated once, at
the adapter that met them, and stay chained as the cause. The exit code is part of the type so that the command line, a
flow and a test agree on what "refused" means.
"""

from __future__ import annotations

from pathlib import Path

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3


class LockgateError(Exception):
    """Base of all errors. `message` says what happened, `hint` what to do next, `log` where to read more."""

    exit_code = EXIT_FAILURE

    def __init__(
        self, message: str, *, hint: str | None = None, log: Path | str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log

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

    exit_code = EXIT_USAGE


class Refused(LockgateError):
    """A gate, a policy or a verdict said no. Never retried: asking again does not change a verdict."""

    exit_code = EXIT_REFUSED


class VerificationError(Refused):
    """A signature, an attestation or an identity is missing or wrong."""


class GateRefused(Refused):
    """An offline gate did not pass. `gate` is its name."""

    def __init__(
        self, gate: str, message: str, *, hint: str | None = None, log: Path | str | None = None
    ) -> None:
        super().__init__(message, hint=hint, log=log)
        self.gate = gate


class SourceError(LockgateError):
    """A model source cannot be resolved or read."""


class IntegrityError(LockgateError):
    """Bytes are not those whose digest was recorded."""


class StorageFull(LockgateError):
    """A disk or a quota has no room left. Never retried: somebody has to make room."""


class ScannerError(LockgateError):
    """A scanner could not do its work (that is not a finding)."""


class QuantizationError(LockgateError):
    """The quantization process failed or wrote something unusable."""


class RegistryError(LockgateError):
    """An OCI registry or layout refused, broke off or answered nonsense."""


class SigningError(LockgateError):
    """A signature could not be made."""


class ServingError(LockgateError):
    """A model server could not be started, never became healthy, or died."""


class EvaluationError(LockgateError):
    """The evaluation harness failed (a low score is not an error)."""


class BenchmarkError(LockgateError):
    """The load generator failed (a slow model is not an error)."""


class RenderingError(LockgateError):
    """Manifests could not be rendered or are invalid."""


class GitError(LockgateError):
    """The GitOps repository cannot be read or written."""


class PushRejected(GitError):
    """The remote moved on while a transition was written, more often than the retry limit."""


class DeliveryError(LockgateError):
    """A webhook delivery could not be kept, or not be handed over to Prefect."""


class MetricsError(LockgateError):
    """A metrics endpoint is absent, hangs or answers nonsense."""


class ClusterError(LockgateError):
    """The cluster (embedded or Kubernetes) cannot be observed or started."""


class ReportError(LockgateError):
    """A report could not be written."""


class EnvironmentMissing(LockgateError):
    """A Python environment or an external program that a step needs is not installed."""
