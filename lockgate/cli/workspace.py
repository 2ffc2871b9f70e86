"""`init`, `up`, `down`, `status`: the workspace and its embedded cluster."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from lockgate.cli import console
from lockgate.cli.prefect_server import ensure_server, stop_server
from lockgate.domain.images import ImageRef
from lockgate.errors import UsageError
from lockgate.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


class Agent(StrEnum):
    EMBEDDED = "embedded"
    ARGOCD = "argocd"
    FLUX = "flux"


class Cloud(StrEnum):
    EKS = "eks"
    GKE = "gke"
    AKS = "aks"
    ONPREM = "onprem"


class Admission(StrEnum):
    NONE = "none"
    KYVERNO = "kyverno"
    POLICY_CONTROLLER = "policy-controller"


def register(app: typer.Typer) -> None:
    for command in (init, up, down, status):
        app.command()(command)


def init(
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of an environment; once for each. Default: local.", show_default=False
        ),
    ] = None,
    agent: Annotated[
        Agent, typer.Option(help="What applies the manifests: embedded, argocd or flux.")
    ] = Agent.EMBEDDED,
    cloud: Annotated[
        Cloud | None, typer.Option(help="Where the cluster runs: eks, gke, aks or onprem.")
    ] = None,
    admission: Annotated[
        Admission, typer.Option(help="What verifies signatures when a pod is admitted.")
    ] = Admission.KYVERNO,
    monitoring: Annotated[
        bool,
        typer.Option(
            "--monitoring",
            help="The cluster has the Prometheus operator: lay down scrapes, rules and alerts for it.",
        ),
    ] = False,
    lockgate_image: Annotated[
        str | None,
        typer.Option(
            help="Lockgate's own image, REGISTRY/…@sha256:…: the pod of release states is laid down, and the work pool's steps run in it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make the workspace: a release key, an image store, and a GitOps repository laid down from the template."""
    from lockgate.adapters.git import Layout
    from tasks.workspace import initialise

    layout = Layout(
        environments=tuple(env or ["local"]), agent=agent.value,
        cloud=cloud.value if cloud is not None else None, admission=admission.value,
        monitoring=monitoring,
        lockgate_image=_image(lockgate_image) if lockgate_image is not None else None,
    )  # fmt: skip
    for line in initialise(Settings(), layout=layout):
        console.out.print(line, markup=False)


def _image(text: str) -> ImageRef:
    try:
        return ImageRef.parse(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"--lockgate-image: {reason}", hint="name it by digest: REGISTRY/PATH@sha256:…"
        ) from error


def up(
    server: Annotated[bool, typer.Option(help="Also Prefect's server and the reconciler.")] = True,
) -> None:
    """Start the embedded cluster (agent and Envoy), Prefect's server and the reconciler. What runs is left as it is."""
    from tasks.workspace import Workspace

    settings = Settings()
    Workspace(settings).start_cluster()
    if server:
        from lockgate.cli.reconciler import ensure_reconciler

        url = ensure_server(settings)
        ensure_reconciler(settings)
        console.out.print(f"Prefect: {url.removesuffix('/api')}", markup=False)
    console.out.print("the embedded cluster is up")


def down() -> None:
    """End everything that this workspace started: reconciler, agent, model servers, Envoy, Prefect's server."""
    from lockgate.cli.reconciler import stop_reconciler
    from tasks.workspace import Workspace

    settings = Settings()
    stop_reconciler(settings)
    if settings.cluster == "local":
        Workspace(settings).embedded_cluster().down()
    stop_server(settings)
    console.out.print("down")


def status(as_json: Json = False) -> None:
    """Where every model stands: what Git says and what the cluster does."""
    from tasks.status import read_status

    rows = read_status(Settings())
    if as_json:
        console.print_json([row.to_data() for row in rows])
        return
    table = Table("model", "env", "phase", "slot", "role", "candidate", "weight", "cluster")
    for row in rows:
        table.add_row(
            row.model, row.environment, row.phase, row.slot, row.role, row.candidate,
            f"{row.weight}%", row.cluster,
        )  # fmt: skip
    console.out.print(table)
