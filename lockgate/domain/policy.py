"""The policy a GitOps repo holds in `policy.yaml`, on a branch that the pipeline cannot write."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Severity

BUILDER = "https://lockgate.dev/builder/release/v1"
"""Builder of images that the release flow made, where it is given no other name."""
DEFAULT_FORMATS = (
    ".safetensors", ".json", ".txt", ".md", ".jinja", ".model", ".tiktoken", ".gguf",
    ".gitattributes", ".yaml",
)  # fmt: skip
DEFAULT_NAMES = ("LICENSE", "LICENSE.txt", "NOTICE", "README", "USE_POLICY")


class Waiver(Frozen):
    """One finding that a person has looked at and accepts, in exactly these bytes, until a day."""

    rule: Annotated[str, Field(min_length=1)]
    """The finding's rule, as the gate's reasons name it (`code-file`, `remote-code`, `CVE-2026-1234`, …)."""
    digest: Digest
    """Of the file that the finding is about; of the scanned image or manifests where it is about no file of a model."""
    reason: Annotated[str, Field(min_length=10)]
    """Why it is accepted, and by whom. It is shown with every decision that uses it."""
    until: date
    """The last day (UTC) on which it counts."""


class TemplatePolicy(Frozen):
    """Chat templates: programs in Jinja that a server runs for every request. Each is read as a syntax tree, then rendered
    in a sandbox with sample conversations."""

    max_characters: Annotated[int, Field(ge=1, le=1 << 20)] = 256 << 10
    """A longer template is refused unread."""
    max_count: Annotated[int, Field(ge=1, le=64)] = 16
    """Templates in one model."""
    cpu_seconds: Annotated[int, Field(ge=1, le=60)] = 2
    """CPU time for rendering one template with all samples."""


class WeightScanPolicy(Frozen):
    """What a model may consist of, and who has to have looked at it."""

    formats: tuple[str, ...] = DEFAULT_FORMATS
    """File name endings that are allowed; content must match the ending. Pickle formats are not among the defaults."""
    names: tuple[str, ...] = DEFAULT_NAMES
    """Whole file names that are allowed beside the formats."""
    licenses: tuple[str, ...] = ("apache-2.0", "mit", "bsd-3-clause", "llama3.2", "gemma", "qwen")
    """License identifiers (as in the Hub's `license` tag, lower case) that may be released, by tag and by text."""
    license_required: bool = False
    """Whether a model without any license information is refused."""
    license_text: Literal["optional", "known", "required"] = "optional"
    """`known`: a license text must be one that is recognised, or one of `license_texts`. `required`: and there must be one.
    `optional`: a text that is not recognised is noted."""
    license_texts: tuple[Digest, ...] = ()
    """License files, by digest, whose very text was read and accepted."""
    remote_code: Literal["refuse", "note"] = "refuse"
    """Code files, and configuration that asks a loader to run code (`auto_map` and the like). `note` turns these findings
    low; to accept code that was reviewed, waive its findings instead."""
    secrets: Literal["refuse", "note"] = "refuse"
    """Credentials in text files."""
    templates: TemplatePolicy = TemplatePolicy()
    max_bytes: Annotated[int, Field(ge=1)] = 4 << 40
    """Size of all files together."""
    scanners: tuple[str, ...] = ("structure", "picklescan", "modelaudit")
    """Scanners that must have completed; one that is missing or crashed refuses the model."""
    optional_scanners: tuple[str, ...] = ()
    """Scanners that run where they are installed; where one is not, the evidence says NOT SCANNED by it and the gate goes
    by the others. A crash refuses here too."""
    hub_security: Literal["required", "recorded", "ignored"] = "recorded"
    """What the Hugging Face Hub's own scanners say of a `hf://` source. `recorded`: their findings refuse, an answer that is
    not there does not. `required`: a scan that the Hub has not finished refuses too."""
    severities: dict[str, Severity] = Field(default_factory=dict)
    """Other severities for rules, by the rule's name."""
    block_at: Severity = Severity.MEDIUM
    """Findings of this severity or above refuse the model."""

    @field_validator("optional_scanners", "scanners")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a scanner is named twice")
        return value


class ImageScanPolicy(Frozen):
    """trivy over images and rendered manifests."""

    trivy: Literal["required", "optional"] = "required"
    """`optional`: where trivy is not installed the evidence says NOT SCANNED and the gate goes by the rest. A scan that was
    started and failed is never optional."""
    block_at: Severity = Severity.HIGH
    """Findings of this severity or above refuse the candidate."""
    scanners: tuple[Literal["vuln", "secret", "misconfig", "license"], ...] = (
        "vuln",
        "secret",
        "misconfig",
    )
    """What trivy looks for in images. In manifests: misconfiguration."""
    max_database_age_days: Annotated[int, Field(ge=1)] = 7
    """A vulnerability database that was older than this when it was used counts as none."""
    severities: dict[str, Severity] = Field(default_factory=dict)
    """Other severities for rules and vulnerabilities, by name."""


class ProvenancePolicy(Frozen):
    """Where a released model may come from, and who may have built its image. Asked of the signed SLSA provenance."""

    sources: tuple[str, ...] = ()
    """Repositories (`organization/name`; `*` stands for anything but `/`). Empty: any."""
    builders: Annotated[tuple[str, ...], Field(min_length=1)] = (BUILDER,)
    """`runDetails.builder.id`, as LOCKGATE_BUILDER sets it where it signs."""

    def takes_source(self, repository: str) -> bool:
        """Whether a model of this repository may be released."""
        return not self.sources or any(
            re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]*"), repository)
            for pattern in self.sources
        )


class SigningPolicy(Frozen):
    """Whose signature counts. A key or an identity, never neither."""

    public_keys: tuple[str, ...] = ()
    """PEM public keys (ECDSA P-256) of the release key."""
    identity: str | None = None
    """Keyless: the certificate's subject, with `issuer`."""
    issuer: str | None = None
    sigstore: Literal["production", "staging"] | dict[str, Any] = "production"
    """Keyless: whose certificates and logs count. The public good instance, its staging, or one of your own as the JSON of its
    `ClientTrustConfig`: it stands here because whoever names the trust root decides who may sign."""
    provenance: ProvenancePolicy = ProvenancePolicy()


class ApprovalRule(Frozen):
    """Whose word it takes for a step with `approval: true`, in one environment. Never that of whoever started the release."""

    needed: Annotated[int, Field(ge=1, le=16)] = 1
    """Approvals of different people."""
    roles: tuple[str, ...] = ()
    """Roles (as in `approvers`) of which each approver has to have one; empty: whoever is listed."""
    valid_hours: Annotated[float, Field(gt=0, le=24 * 90)] = 72.0
    """Hours from the question on in which it may be answered."""
    merge_counts: bool = False
    """Whether the promotion pull request is opened, and its merge approves by the word of `forge` on who merged and who approved
    it there. false: signatures alone count."""


class ForgePolicy(Frozen):
    """Where promotion pull requests are opened, and whose word on them is taken. Its token is LOCKGATE_FORGE_TOKEN."""

    kind: Literal["github", "gitlab"]
    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+$")]
    """`owner/name` of the GitOps repository; at GitLab with all groups."""
    url: str | None = None
    """GitHub: the API, `https://HOST/api/v3` of an own server. GitLab: the server. None: github.com, gitlab.com."""


class Policy(Frozen):
    apiVersion: Literal["lockgate.dev/v1"] = "lockgate.dev/v1"
    kind: Literal["Policy"] = "Policy"
    weights: WeightScanPolicy = WeightScanPolicy()
    images: ImageScanPolicy = ImageScanPolicy()
    signing: SigningPolicy = SigningPolicy()
    gates: Annotated[tuple[str, ...], Field(min_length=1)] = ("scan", "evaluation", "benchmark")
    """Gates that a candidate must have passed."""
    max_evidence_age_days: Annotated[int, Field(ge=1)] = 30
    """Days after which what the gates decided no longer admits a candidate: asked before its first commit and before every
    raise, not of what serves already."""
    approvals: dict[str, ApprovalRule] = Field(default_factory=dict)
    """Rules for approvals by environment; one that is not named has the defaults."""
    forge: ForgePolicy | None = None
    """Where promotion pull requests are opened, for the environments with `merge_counts`."""
    rescan_findings: Literal["hold", "report"] = "hold"
    """What follows where the weekly re-scan finds something new in what serves. `hold`: a release of that candidate that is
    under way is held besides, so that nothing raises it any further. Neither rolls anything back."""
    waivers: tuple[Waiver, ...] = ()
    """Findings that are accepted, each in exactly these bytes and until a day."""

    @model_validator(mode="after")
    def _merges_are_told_by_somebody(self) -> Policy:
        if self.forge is None and any(rule.merge_counts for rule in self.approvals.values()):
            raise ValueError("`merge_counts` needs `forge`: whose word on merges counts")
        return self

    def approval_rule(self, environment: str) -> ApprovalRule:
        return self.approvals.get(environment, ApprovalRule())
