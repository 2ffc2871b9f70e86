"""Where things lie: the workspace and the few settings that differ from place to place.

Everything can be set by `LOCKGATE_…` environment variables (a work pool's job variables, a systemd unit, a shell). On a
laptop nothing needs to be set: the workspace is `.lockgate` in the current directory and holds an image store, a bare GitOps
remote, a key and an embedded cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import BUILDER


class Settings(BaseSettings):
    """Settings of one process. Frozen: read once where a flow or a command starts."""

    model_config = SettingsConfigDict(env_prefix="LOCKGATE_", frozen=True, extra="ignore")

    workspace: Path = Path(".lockgate")
    store: str | None = None
    """Image store: `oci:PATH` or `HOST[:PORT]`. None: the workspace's own OCI layout."""
    plain_http: bool = False
    """Talk to the registry without TLS."""
    repository: str = "lockgate.local"
    """Host and path prefix of the image repositories, e.g. `registry.example.com/ml`."""
    remote: str | None = None
    """GitOps remote. None: the workspace's own bare repository."""
    branch: str = "main"
    policy_branch: str | None = None
    """Branch of the remote that `policy.yaml` and `approvers` are read from, which this identity cannot write. None:
    `branch`, whose host has to keep this identity from these two paths then."""
    forge_token: SecretStr | None = None
    """Of the policy's `forge`, for promotion pull requests: may read and open them in the GitOps repository, and merges none."""
    forge_token_file: Path | None = None
    """File that holds it, as a secret store mounts it; a line end at its end is not part of it."""
    cluster: Literal["local", "kubernetes"] = "local"
    """What serves: the embedded cluster, or the Kubernetes cluster of KUBECONFIG (in a pod: its own)."""
    environment: str = "local"
    """The environment that commands without a release look at in a Kubernetes cluster; a release names its own."""
    agent: Literal["argocd", "flux", "none"] = "none"
    """Which GitOps agent feeds the Kubernetes cluster: its word is told where a sync does not come."""
    agent_namespace: str | None = None
    """Where its objects are. None: `argocd` or `flux-system`."""
    agent_object: str = "lockgate-models-{environment}"
    """Its Application, or its Kustomization and GitRepository."""
    sync_webhook: str | None = None
    """Argo CD's `/api/webhook`, or the Flux Receiver's address: asked after every commit. None: the agent looks by itself."""
    sync_webhook_secret: SecretStr | None = None
    gateway_url: str = "https://{model}.{environment}.models.internal"
    """How clients reach a model's gateway in a Kubernetes cluster."""
    gateway_metrics: str | None = None
    """Statistics page (Prometheus' format) of the gateway's Envoy. None: the gateway is not read there."""
    gateway_cluster: str = "service/{namespace}/{service}/8000/http"
    """Envoy's name of a slot's cluster on that page (here: Envoy Gateway's)."""
    gateway_mirror_cluster: str = "httproute/{namespace}/{model}/rule/{rule}-mirror-0"
    """Its name of the cluster that copies of a mirror step go to (here: Envoy Gateway's); empty where that is the slot's own."""
    prometheus_url: str | None = None
    """Prometheus (or what answers as one) that scrapes the servers and the gateway; with `{environment}` one for each. The
    canary is judged by what it has stored. None: by scrapes of Lockgate's own."""
    prometheus_ca: Path | None = None
    """PEM file of those who may sign its certificate. None: the usual ones."""
    prometheus_token: SecretStr | None = None
    """Bearer token that it is asked with."""
    prometheus_token_file: Path | None = None
    """File that holds the token, read anew for each look at a step: as a secret store or a service account mounts it."""
    prometheus_servers: dict[str, str] = {
        "job": "lockgate/model-servers", "namespace": "{namespace}", "model": "{model}", "slot": "{slot}",
    }  # fmt: skip
    """Labels (JSON) that its targets of a slot's servers have (here: the template's PodMonitor's)."""
    prometheus_gateway: dict[str, str] = {"job": "lockgate/gateway"}
    """Labels (JSON) of its targets of the gateway; slots are told apart by the names of Envoy's clusters."""
    prometheus_instance: str = "pod"
    """The label that servers are named by: as the cluster names them."""
    test_server: Literal["process", "kubernetes"] = "process"
    """Where candidates are served for evaluation and benchmark: as a process of the measuring machine, or as a Job."""
    test_namespace: str = "lockgate-tests"
    """Namespace of those Jobs: nothing else runs there."""
    test_node_selector: dict[str, str] = {}
    """Labels (JSON) of the nodes that they run on: the hardware that measurements are looked up by."""
    test_address: str = "http://{name}.{namespace}.svc:{port}"
    """How the measuring machine reaches their Services."""
    signing_key: Path | None = None
    """PEM key file. None: the workspace's own key."""
    signing_key_pem: SecretStr | None = None
    """The PEM itself, where a secret store fills the environment; then `signing_key` is not read."""
    signing_key_passphrase: SecretStr | None = None
    signing_key_passphrase_file: Path | None = None
    """File that holds the passphrase, as a secret store mounts it; a line end at its end is not part of it."""
    signing_key_uri: str | None = None
    """A key that never leaves its service, as securesystemslib names it: `awskms:…`, `gcpkms:…`, `azurekms:…`, `hsm:…`. Its
    public half is read from `signing_public_key`."""
    signing_public_key: Path | None = None
    """PEM file of the public half of `signing_key_uri`. None: the workspace's own."""
    builder: str = BUILDER
    """`runDetails.builder.id` of provenance signed here; the policy lists those that count."""
    step_container: ImageRef | None = None
    """Image, by digest, of the container that steps run in; provenance names it."""
    keyless: bool = False
    """Sign with the ambient OIDC identity (Fulcio, Rekor) instead of a key."""
    commit_signing_key: str | None = None
    """What signs Lockgate's commits: the file of an SSH key, or `openpgp:FINGERPRINT` of a key in this user's GnuPG keyring."""
    step_runner: Literal["inline", "deployment"] = "inline"
    """Whether step flows run in the calling process or as deployments on work pools."""
    prefect_api_url: str | None = Field(default=None, validation_alias="PREFECT_API_URL")
    """A Prefect server that is already there. None: the workspace starts one of its own and re-uses it."""

    prefect_api_key: SecretStr | None = Field(default=None, validation_alias="PREFECT_API_KEY")
    prefect_api_auth_string: SecretStr | None = Field(
        default=None, validation_alias="PREFECT_API_AUTH_STRING"
    )
    """`USER:PASSWORD` of a server behind basic authentication."""

    @property
    def layout(self) -> WorkspaceLayout:
        return WorkspaceLayout(self.workspace.absolute())

    @property
    def store_location(self) -> str:
        return self.store or f"oci:{self.layout.store}"

    @property
    def git_remote(self) -> str:
        return self.remote or str(self.layout.remote)

    def model_repository(self, model: str) -> str:
        return f"{self.repository}/models/{model}"

    def runtime_repository(self, engine: str) -> str:
        return f"{self.repository}/runtimes/{engine}"

    @property
    def records_repository(self) -> str:
        """Where step records and evidence documents are kept."""
        return f"{self.repository}/records"


class NotificationSettings(BaseSettings):
    """Where messages about releases go."""

    model_config = SettingsConfigDict(
        env_prefix="LOCKGATE_NOTIFICATIONS_", frozen=True, extra="ignore"
    )

    url: SecretStr | None = None
    """Address as apprise reads it, e.g. `slack://…`; with it whoever has it may write there."""


class HookSettings(BaseSettings):
    """Secrets of those who send webhooks: from the environment, or one file a sender. Several lines are several secrets, so
    that one can be replaced without a gap. A sender without any is not listened to."""

    model_config = SettingsConfigDict(env_prefix="LOCKGATE_HOOKS_", frozen=True, extra="ignore")

    secrets: Path | None = None
    """Directory with a file for each sender, named as it is (`hub`, `github`, …): how Kubernetes mounts a Secret."""
    hub: SecretStr | None = None
    github: SecretStr | None = None
    gitlab: SecretStr | None = None
    gitea: SecretStr | None = None
    distribution: SecretStr | None = None
    harbor: SecretStr | None = None
    generic: SecretStr | None = None


class WorkspaceLayout:
    """Paths inside a workspace. Nothing is created here."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def remote(self) -> Path:
        return self.root / "gitops.git"

    @property
    def private_key(self) -> Path:
        return self.root / "keys" / "release.key"

    @property
    def public_key(self) -> Path:
        return self.root / "keys" / "release.pub"

    @property
    def cluster(self) -> Path:
        return self.root / "cluster"

    @property
    def prefect(self) -> Path:
        return self.root / "prefect"

    @property
    def hooks(self) -> Path:
        """Database of webhook deliveries."""
        return self.root / "hooks" / "deliveries.sqlite"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def snapshot(self, digest: Digest) -> Path:
        """Where a snapshot's files lie once they were fetched or pulled. Content-addressed."""
        return self.root / "snapshots" / digest.hex

    def checkout(self, purpose: str) -> Path:
        return self.root / "checkouts" / purpose

    def trace(self, model: str, environment: str, generation: int) -> Path:
        """The scrapes of one canary step: a step begins with a commit, so its generation names it."""
        return self.root / "traces" / f"{model}-{environment}" / f"{generation:06d}.jsonl"

    def kept_report(self, digest: str) -> Path:
        """A judge's report on its way into a commit, so that no store is needed there."""
        return self.root / "traces" / "reports" / f"{digest}.json"

    def looks(self, model: str, environment: str, generation: int) -> Path:
        """The judge's report after each look of one canary step, for the report's plots."""
        return self.trace(model, environment, generation).with_suffix(".looks.jsonl")

    def judge_config(self, model: str, environment: str, generation: int) -> Path:
        """How that step is judged, as `lockgate judge --config` reads it."""
        return self.trace(model, environment, generation).with_suffix(".judge.json")
