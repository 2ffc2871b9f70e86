"""`package`, `verify`, `sign-directory` and `runtime import`: commands on images and directories; no flow runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lockgate.cli import console
from lockgate.cli.documents import policy_or_default
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.errors import EXIT_REFUSED, UsageError
from lockgate.settings import Settings

if TYPE_CHECKING:
    from lockgate.domain.stores import ImageStore

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Directory = Annotated[Path, typer.Argument(help="Directory of a model.", show_default=False)]
Image = Annotated[str, typer.Argument(help="REPOSITORY@sha256:…", show_default=False)]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="policy.yaml; the GitOps repo's if not given.")
]
_REGISTRY = re.compile(r"(localhost|[^/]*[.:][^/]*)(?:/(.+))?")

runtime_app = typer.Typer(help="Runtime images: mirror, scan and sign them.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    for command in (package, verify, pull):
        app.command()(command)
    app.command("sign-directory")(sign_directory)
    runtime_app.command("import")(import_)
    app.add_typer(runtime_app, name="runtime")


@runtime_app.callback()
def runtime() -> None:
    """Runtime images: mirror, scan and sign them."""


def package(
    directory: Directory,
    to: Annotated[
        str | None,
        typer.Option(
            help="oci:DIRECTORY, HOST[:PORT] or HOST[:PORT]/REPOSITORY; the settings' store if not given."
        ),
    ] = None,
    repository: Annotated[str | None, typer.Option(help="Repository of the image.")] = None,
    mount_from: Annotated[
        list[str] | None,
        typer.Option(help="Repository of the same registry to take equal layers from; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Package a model directory as a plain, deterministic OCI image and print its reference."""
    from lockgate.adapters import sources
    from lockgate.adapters.oci import open_store
    from lockgate.adapters.oci.package import push_model

    settings = Settings()
    location, named = _target(to)
    if named and repository:
        raise UsageError("the repository is given twice: after the host, and by --repository")
    name = re.sub(r"[^a-z0-9]+", "-", directory.absolute().name.lower()).strip("-") or "model"
    snapshot = sources.read_snapshot(directory)
    with console.Bars() as bars:
        image = push_model(
            open_store(location or settings.store_location, plain_http=settings.plain_http),
            named or repository or settings.model_repository(name), directory, snapshot,
            labels={}, mount_from=tuple(mount_from or ()),
            progress=lambda done, total: bars.progressed("package", done, total),
        )  # fmt: skip
    if as_json:
        console.print_json({"image": str(image), "snapshot": snapshot.digest})
    else:
        console.out.print(str(image), markup=False, highlight=False)


def verify(
    image: Image,
    policy: PolicyFile = None,
    candidate: Annotated[
        str | None,
        typer.Option(help="Candidate that the gates must have passed; any if not given."),
    ] = None,
    runtime: Annotated[
        bool, typer.Option("--runtime", help="A runtime image: signature and scan, no gates.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify an image against the policy: signature, identity, provenance, gates, age. Exits 3 and names each rule that failed,
    1 if the image could not be asked for."""
    from datetime import UTC, datetime, timedelta

    from lockgate.adapters import signing

    rules = policy_or_default(policy)
    reference = _reference(image)
    try:
        subject = Digest(candidate) if candidate is not None else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    store, now = _store_of(reference), datetime.now(UTC)
    max_age = timedelta(days=rules.max_evidence_age_days)
    if runtime:
        result = signing.verify_runtime(store, reference, rules.signing, max_age=max_age, now=now)
    else:
        result = signing.verify(
            store, reference, rules.signing, candidate=subject, require_gates=rules.gates,
            max_age=max_age, now=now,
        )  # fmt: skip
    if as_json:
        console.print_json(result.to_data())
    else:
        for failure in result.failures:
            console.out.print(f"FAILED {failure}", markup=False, highlight=False)
        console.out.print("verified" if result.ok else "NOT verified")
    if result.outage is not None:
        raise result.outage
    if not result.ok:
        raise typer.Exit(EXIT_REFUSED)


def sign_directory(
    directory: Directory,
    out: Annotated[
        Path | None, typer.Option(help="Signature file; DIRECTORY.sig if not given.")
    ] = None,
) -> None:
    """Sign a model directory as OpenSSF Model Signing does (`model_signing verify` reads it). The key of the settings signs."""
    from lockgate.adapters import signing, sources
    from tasks.workspace import Workspace

    path = out or directory.absolute().parent / f"{directory.absolute().name}.sig"
    snapshot = sources.read_snapshot(directory)
    signer = Workspace(Settings()).signer()
    path.write_bytes(signing.sign_snapshot(snapshot, directory.absolute().name, signer))
    console.out.print(f"{path}: {len(snapshot.files)} files, signed by {signer.name}", markup=False)


def import_(
    image: Image,
    engine: Annotated[str, typer.Option(help="Engine that the image runs.")] = "vllm",
    origin: Annotated[
        str | None,
        typer.Option(
            "--from", help="oci:DIRECTORY or HOST[:PORT] where it lies, if not its name's host."
        ),
    ] = None,
    platform: Annotated[str, typer.Option(help="Taken out of an index.")] = "linux/amd64",
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """Mirror a runtime image into the store, scan it with trivy, sign it and attest the scan. Exits 3 if the scan refuses it.

    Prints the reference to write into a spec as `runtime`."""
    from lockgate.adapters.oci import open_store
    from tasks.runtimes import import_runtime
    from tasks.workspace import Workspace

    settings = Settings()
    where = open_store(origin, plain_http=settings.plain_http) if origin else None
    made = import_runtime(
        Workspace(settings), _reference(image), policy_or_default(policy), engine=engine,
        origin=where, platform=platform,
    )  # fmt: skip
    if as_json:
        console.print_json(made.to_data())
    else:
        for reason in made.scan.reasons:
            console.err.print(reason, markup=False, highlight=False)
        console.out.print(str(made.image), markup=False, highlight=False)


def pull(
    image: Image,
    to: Annotated[Path, typer.Argument(help="Directory that is to hold the model alone.")],
) -> None:
    """Unpack a model image into a directory, every file verified by its digest. Done once; a second run finds it there.

    What the init container of a cluster without image volumes runs.
    """
    from lockgate.adapters.oci.pulling import pull_model

    reference = _reference(image)
    snapshot = pull_model(_store_of(reference), reference, to)
    console.out.print(f"{to}: {snapshot.digest}", markup=False, highlight=False)


def _reference(text: str) -> ImageRef:
    try:
        return ImageRef.parse(text)
    except ValueError as error:
        raise UsageError(f"not an image by digest: {text!r}") from error


def _target(to: str | None) -> tuple[str | None, str | None]:
    """Location of the store and, where it is given, the repository, from `HOST/REPOSITORY`."""
    match = _REGISTRY.fullmatch(to or "")
    if to is None or to.startswith("oci:") or match is None or match[2] is None:
        return to, None
    return match[1], to


def _store_of(reference: ImageRef) -> ImageStore:
    """The registry that the reference names; the settings' store for names without a registry of their own."""
    from lockgate.adapters.oci import open_store

    settings = Settings()
    location = settings.store_location
    host = reference.repository.partition("/")[0]
    if host != settings.repository.partition("/")[0] and _REGISTRY.fullmatch(host):
        location = host
    return open_store(location, plain_http=settings.plain_http)
