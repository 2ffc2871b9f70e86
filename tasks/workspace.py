"""The one place where settings become adapters."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from lockgate import environments
from lockgate.adapters.forges import open_forge
from lockgate.adapters.git import (
    GitOpsRepository,
    Layout,
    RequestBranches,
    lay_down,
    template_directory,
)
from lockgate.adapters.kube import ArgoCd, Flux, GitOpsAgent, SyncWebhook
from lockgate.adapters.oci import ImageStore, open_store
from lockgate.adapters.oci.package import pull_model, snapshot_of
from lockgate.adapters.oci.records import StepRecords
from lockgate.adapters.oci.runtime import push_runtime
from lockgate.adapters.signing import (
    KeylessSigner,
    KeySigner,
    ServiceKeySigner,
    Signer,
    generate_key,
)
from lockgate.domain.approval import Forge, PullRequest
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import ForgePolicy, ImageScanPolicy, Policy, SigningPolicy
from lockgate.domain.steps import StoredModel
from lockgate.errors import UsageError
from lockgate.settings import Settings, WorkspaceLayout
from serving.candidate_server import CandidateServer
from serving.cluster import Cluster
from serving.ephemeral import ProcessServer
from serving.kubernetes_cluster import Gateway, KubernetesCluster
from serving.kubernetes_job import KubernetesServer
from serving.local.cluster import LocalCluster
from serving.local.cpu_pool import Cores


@dataclass(frozen=True)
class Workspace:
    """Adapters made from settings. Cheap to make; connections are opened on first use."""

    settings: Settings

    @classmethod
    def current(cls) -> Workspace:
        """From this process's environment: a task on another machine finds its own paths and endpoints."""
        return cls(Settings())

    @property
    def layout(self) -> WorkspaceLayout:
        return self.settings.layout

    @cached_property
    def store(self) -> ImageStore:
        return open_store(self.settings.store_location, plain_http=self.settings.plain_http)

    @cached_property
    def records(self) -> StepRecords:
        return StepRecords(self.store, self.settings.records_repository)

    @cached_property
    def gitops(self) -> GitOpsRepository:
        """One checkout for all processes of the workspace: they queue; other machines race with it at the remote only."""
        return GitOpsRepository(
            self.settings.git_remote, self.layout.checkout("driver"), branch=self.settings.branch,
            signing_key=self.settings.commit_signing_key,
            policy_branch=self.settings.policy_branch,
        )  # fmt: skip

    @cached_property
    def request_branches(self) -> RequestBranches:
        """What promotion pull requests come from, and whether they have landed."""
        settings = self.settings
        return RequestBranches(
            settings.git_remote, self.layout.checkout("requests"),
            settings.policy_branch or settings.branch, signing_key=settings.commit_signing_key,
        )  # fmt: skip

    @cached_property
    def forge_words(self) -> dict[int, PullRequest | None]:
        """What the forge has said of pull requests, by number, since this object was made; None where it did not answer."""
        return {}

    def forge(self, policy: ForgePolicy) -> Forge:
        """The host of pull requests that the policy names. Raises `UsageError` without a token."""
        token = _secret(
            self.settings.forge_token, self.settings.forge_token_file, "LOCKGATE_FORGE_TOKEN"
        )
        if not token:
            raise UsageError(
                f"the policy's forge ({policy.kind}) cannot be asked without a token",
                hint="set LOCKGATE_FORGE_TOKEN or LOCKGATE_FORGE_TOKEN_FILE",
            )
        return open_forge(policy, token)

    @cached_property
    def kubectl(self) -> Path:
        return environments.kubectl_path()

    @cached_property
    def policy(self) -> Policy:
        """The policy at the head of the protected branch, read once."""
        self.gitops.sync()
        return self.gitops.read_policy()

    def cluster(self, environment: str | None = None) -> Cluster:
        """The cluster that the settings name, to be observed and asked to sync. Needs no policy: it starts nothing.

        `environment`: whose namespace, in a Kubernetes cluster; None for the settings' own. The embedded cluster has one.
        """
        if self.settings.cluster == "kubernetes":
            return kubernetes_cluster(self.settings, environment or self.settings.environment)
        return self.embedded_cluster()

    def embedded_cluster(self) -> LocalCluster:
        """The embedded cluster, to be observed or ended."""
        return self._cluster(Policy(), Path(sys.executable))

    def start_cluster(self) -> LocalCluster:
        """The embedded cluster, running, with the policy's keys and the serving environment of this machine."""
        python = environments.environment_python("serving")
        cluster = self._cluster(self.policy, python)
        cluster.up()
        return cluster

    def _cluster(self, policy: Policy, python: Path) -> LocalCluster:
        if self.settings.cluster != "local":
            raise UsageError(
                "only the embedded cluster is started and ended here",
                hint="unset LOCKGATE_CLUSTER, or set it to `local`",
            )
        return LocalCluster(
            self.layout.cluster, remote=self.settings.git_remote, branch=self.settings.branch,
            store=self.settings.store_location, plain_http=self.settings.plain_http,
            signing=policy.signing, gates=policy.gates, serving_python=python,
            runtime_environment=Digest(environments.environment_digest("serving")),
            snapshots=self.layout.root / "pulled",
        )  # fmt: skip

    def candidate_server(
        self, pod_template: dict[str, Any] | None = None, cores: Cores | None = None
    ) -> CandidateServer:
        """Where candidates are served for measurements, as the settings say. `pod_template`: of the slot, for a Job;
        `cores`: for a process, instead of any free ones."""
        settings = self.settings
        if settings.test_server == "process":
            return ProcessServer(
                lambda: environments.environment_python("serving"),
                lambda image: self.materialise(self.stored_model(image)),
                cores,
            )
        return KubernetesServer(
            pod_template, namespace=settings.test_namespace, node_selector=settings.test_node_selector,
            address=settings.test_address,
        )  # fmt: skip

    def signer(self) -> Signer:
        """Keyless, a key in a service, a key from the environment, or a key file: the first that the settings name."""
        settings = self.settings
        if settings.keyless:
            return KeylessSigner(self.policy.signing)
        if settings.signing_key_uri is not None:
            public = settings.signing_public_key or self.layout.public_key
            try:
                return ServiceKeySigner(settings.signing_key_uri, public.read_text())
            except OSError as error:
                raise UsageError(
                    f"the public half of the release key, {public}, cannot be read: {error.strerror}",
                    hint="name it in LOCKGATE_SIGNING_PUBLIC_KEY",
                ) from error
        pem = settings.signing_key_pem
        return KeySigner(
            pem.get_secret_value() if pem else settings.signing_key or self.layout.private_key,
            _passphrase(settings),
        )

    def materialise(self, model: StoredModel) -> Path:
        """The model's files on this machine: there already, or pulled by digest from the store."""
        directory = self.layout.snapshot(model.snapshot)
        if not directory.is_dir():
            pull_model(self.store, model.image, directory)
        return directory

    def stored_model(self, image: ImageRef) -> StoredModel:
        snapshot = snapshot_of(self.store, image)
        return StoredModel(snapshot=snapshot.digest, size=snapshot.size, image=image)

    def local_runtime(self, engine: str) -> ImageRef:
        """The embedded cluster's runtime as an image: its lock file, pinned by digest. Pushing it again changes nothing."""
        return push_runtime(
            self.store,
            self.settings.runtime_repository(engine),
            environment_digest=Digest(environments.environment_digest("serving")),
            lock_file=environments.lock_file("serving"),
            engine=engine,
        )


def _passphrase(settings: Settings) -> str | None:
    """The signing key's, from the environment or a file. Raises `UsageError`."""
    return _secret(
        settings.signing_key_passphrase, settings.signing_key_passphrase_file,
        "LOCKGATE_SIGNING_KEY_PASSPHRASE",
    )  # fmt: skip


def _secret(value: SecretStr | None, path: Path | None, name: str) -> str | None:
    if value is not None:
        return value.get_secret_value()
    if path is None:
        return None
    try:
        return path.read_text().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the file {path} of {name}_FILE cannot be read: {error}", hint=f"check {name}_FILE"
        ) from error


def kubernetes_cluster(settings: Settings, environment: str) -> KubernetesCluster:
    """The Kubernetes cluster of the settings. Nothing is contacted yet."""
    name = settings.agent_object.format(environment=environment)
    agent: GitOpsAgent | None = None
    if settings.agent == "argocd":
        agent = ArgoCd(name, settings.agent_namespace or "argocd")
    elif settings.agent == "flux":
        agent = Flux(name, name, settings.agent_namespace or "flux-system")
    secret = settings.sync_webhook_secret
    webhook = settings.sync_webhook and SyncWebhook(
        settings.sync_webhook, settings.git_remote, settings.branch,
        secret.get_secret_value() if secret is not None else None,
    )  # fmt: skip
    return KubernetesCluster(
        environment, remote=settings.git_remote, branch=settings.branch, agent=agent,
        webhook=webhook or None,
        gateway=Gateway(
            settings.gateway_url, settings.gateway_metrics, settings.gateway_cluster,
            settings.gateway_mirror_cluster,
        ),
    )  # fmt: skip


def initialise(settings: Settings, *, layout: Layout, demo: bool = False) -> list[str]:
    """Make what a workspace needs and lacks: key, GitOps repository with policy. A second call changes nothing.

    The layout's addresses are the settings'. `demo` writes the demonstration's policy: trivy is optional there, and its
    absence is written into the evidence.
    """
    paths = settings.layout
    made = []
    if not paths.private_key.exists():
        generate_key(paths.private_key, paths.public_key, _passphrase(settings))
        made.append(f"release key: {paths.private_key} (public: {paths.public_key})")
    public_key = paths.public_key.read_text()
    signing = SigningPolicy(public_keys=(public_key,))
    images = ImageScanPolicy(trivy="optional") if demo else ImageScanPolicy()
    named = "repository" in settings.model_fields_set
    laid_down = lay_down(
        template_directory(), paths.checkout("first"),
        layout=replace(
            layout, remote=settings.git_remote, images=settings.repository if named else None,
            committer=settings.commit_signing_key,
        ),
        public_key_pem=public_key, branch=settings.branch,
        policy=Policy(signing=signing, images=images), signing_key=settings.commit_signing_key,
    )  # fmt: skip
    if laid_down.created:
        made.append(f"GitOps repository: {settings.git_remote}")
        made += _left_out(layout)
        made += _unverified(layout, settings.commit_signing_key)
    return made or [f"{paths.root} is a workspace already"]


def _unverified(layout: Layout, key: str | None) -> list[str]:
    """What an agent cannot verify of Lockgate's commits with this key."""
    if layout.agent == "flux" and key is None:
        return [
            "Flux applies signed commits only: set LOCKGATE_COMMIT_SIGNING_KEY before the first release"
        ]
    if layout.agent == "argocd" and not (key or "").startswith("openpgp:"):
        return [
            "Argo CD verifies OpenPGP signatures only: with LOCKGATE_COMMIT_SIGNING_KEY=openpgp:FINGERPRINT its projects ask "
            "for them; without, let the Git host refuse unsigned commits"
        ]
    return []


def _left_out(layout: Layout) -> list[str]:
    """What a cluster of this layout may have and the repository has not."""
    if layout.agent == "embedded":
        return []
    if layout.lockgate_image is None:
        said = [
            "no pod of release states, and no image of the work pool's steps: build one (docs/image.md) and name it in "
            "platform/state-metrics and platform/prefect/workpool.yaml, or at once by --lockgate-image; then add "
            f"../../../platform/state-metrics to the resources of clouds/{layout.cloud}/cluster"
        ]
    else:
        said = [
            f"release states (lockgate metrics): platform/state-metrics, in clouds/{layout.cloud}/cluster"
        ]
    if layout.monitoring:
        return [
            *said,
            f"scrapes, rules and alerts (Prometheus operator): clouds/{layout.cloud}/cluster",
        ]
    return [
        *said,
        "no scrapes, rules or alerts: for a cluster with the Prometheus operator add "
        f"../../../platform/monitoring to the components of clouds/{layout.cloud}/cluster",
    ]
