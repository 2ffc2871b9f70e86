"""The one place where settings become adapters."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lockgate import environments
from lockgate.adapters.git import Agent, GitOpsRepository, lay_down, template_directory
from lockgate.adapters.oci import ImageStore, open_store
from lockgate.adapters.oci.package import pull_model, snapshot_of
from lockgate.adapters.oci.records import StepRecords
from lockgate.adapters.oci.runtime import push_runtime
from lockgate.adapters.signing import KeylessSigner, KeySigner, Signer, generate_key
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import ImageScanPolicy, Policy, SigningPolicy
from lockgate.domain.steps import StoredModel
from lockgate.errors import UsageError
from lockgate.settings import Settings, WorkspaceLayout
from serving.candidate_server import CandidateServer
from serving.ephemeral import ProcessServer
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
            ssh_signing_key=self.settings.commit_signing_key,
        )  # fmt: skip

    @cached_property
    def kubectl(self) -> Path:
        return environments.kubectl_path()

    @cached_property
    def policy(self) -> Policy:
        """The policy at the head of the protected branch, read once."""
        self.gitops.sync()
        return self.gitops.read_policy()

    def cluster(self) -> LocalCluster:
        """The embedded cluster, to be observed, asked to sync, or ended. Needs no policy: it starts nothing."""
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
                "the flows drive the embedded cluster only, so far",
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
        if self.settings.keyless:
            return KeylessSigner(self.policy.signing)
        passphrase = self.settings.signing_key_passphrase
        return KeySigner(
            self.settings.signing_key or self.layout.private_key,
            passphrase.get_secret_value() if passphrase else None,
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


def initialise(
    settings: Settings, *, environment: str, agent: Agent, demo: bool = False
) -> list[str]:
    """Make what a workspace needs and lacks: key, GitOps repository with policy. A second call changes nothing.

    `demo` writes the demonstration's policy: trivy is optional there, and its absence is written into the evidence.
    """
    layout = settings.layout
    made = []
    if not layout.private_key.exists():
        passphrase = settings.signing_key_passphrase
        generate_key(
            layout.private_key, layout.public_key,
            passphrase.get_secret_value() if passphrase else None,
        )  # fmt: skip
        made.append(f"release key: {layout.private_key} (public: {layout.public_key})")
    public_key = layout.public_key.read_text()
    signing = SigningPolicy(public_keys=(public_key,))
    images = ImageScanPolicy(trivy="optional") if demo else ImageScanPolicy()
    laid_down = lay_down(
        template_directory(), layout.checkout("first"), environment=environment, agent=agent,
        public_key_pem=public_key, remote=settings.git_remote, branch=settings.branch,
        policy=Policy(signing=signing, images=images),
    )  # fmt: skip
    if laid_down.created:
        made.append(f"GitOps repository: {settings.git_remote}")
    return made or [f"{layout.root} is a workspace already"]
