"""The policy a GitOps repo holds in `policy.yaml`, on a branch that the pipeline cannot write."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lockgate.domain.base import Frozen
from lockgate.domain.evidence import Severity

DEFAULT_FORMATS = (
    ".safetensors", ".json", ".txt", ".md", ".jinja", ".model", ".tiktoken", ".gguf",
    ".gitattributes", ".yaml",
)  # fmt: skip
DEFAULT_NAMES = ("LICENSE", "LICENSE.txt", "NOTICE", "README", "USE_POLICY")


class WeightScanPolicy(Frozen):
    """Which files a model may consist of."""

    formats: tuple[str, ...] = DEFAULT_FORMATS
    """File name endings that are allowed; content must match the ending. Pickle formats are not among the defaults."""
    names: tuple[str, ...] = DEFAULT_NAMES
    """Whole file names that are allowed beside the formats."""
    licenses: tuple[str, ...] = ("apache-2.0", "mit", "bsd-3-clause", "llama3.2", "gemma", "qwen")
    """License identifiers (as in the Hub's `license` tag, lower case) that may be released."""
    license_required: bool = False
    """Whether a model without any license information is refused."""
    scanners: tuple[str, ...] = ("structure", "picklescan")
    """Scanners that must have completed; one that is missing or crashed refuses the model."""
    block_at: Severity = Severity.MEDIUM
    """Findings of this severity or above refuse the model."""


class ImageScanPolicy(Frozen):
    """trivy over images and rendered manifests."""

    trivy: Literal["required", "optional"] = "required"
    """`optional`: where trivy is not installed the evidence says NOT SCANNED and the gate goes by the rest. A scan that was
    started and failed is never optional."""
    block_at: Severity = Severity.HIGH
    scanners: tuple[Literal["vuln", "secret", "misconfig", "license"], ...] = (
        "vuln",
        "secret",
        "misconfig",
    )


class SigningPolicy(Frozen):
    """Whose signature counts. One of the two, never neither."""

    public_keys: tuple[str, ...] = ()
    """PEM public keys (ECDSA P-256) of the release key."""
    identity: str | None = None
    """Keyless: the certificate's subject, with `issuer`."""
    issuer: str | None = None


class Policy(Frozen):
    apiVersion: Literal["lockgate.dev/v1"] = "lockgate.dev/v1"
    kind: Literal["Policy"] = "Policy"
    weights: WeightScanPolicy = WeightScanPolicy()
    images: ImageScanPolicy = ImageScanPolicy()
    signing: SigningPolicy = SigningPolicy()
    gates: Annotated[tuple[str, ...], Field(min_length=1)] = ("scan", "evaluation", "benchmark")
    """Gates that a candidate must have passed."""
    max_evidence_age_days: Annotated[int, Field(ge=1)] = 30
