"""From a source to a scanned model image: resolve, fetch, quantize, scan, package."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from prefect.cache_policies import NO_CACHE

from lockgate import environments
from lockgate.adapters import quantization, scanners, sources
from lockgate.adapters.declarations import read_declaration
from lockgate.adapters.oci import ImageStore, open_store
from lockgate.adapters.oci.images import image_labels
from lockgate.adapters.oci.package import missing_blobs, pull_model, push_model, snapshot_of
from lockgate.domain.calibration import CalibrationSet
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScanEvidence, ScannerStatus
from lockgate.domain.gates import Decision
from lockgate.domain.gates.scan import scan_gate, too_old
from lockgate.domain.images import ImageRef
from lockgate.domain.model_image import LABEL_FORMAT
from lockgate.domain.policy import ImageScanPolicy, Policy, WeightScanPolicy
from lockgate.domain.recipes import definition
from lockgate.domain.sources import ModelRevision, Snapshot, Source, SourceKind
from lockgate.domain.spec import CalibrationSpec, Recipe, ReleaseSpec
from lockgate.domain.steps import (
    PreparedModel,
    QuantizedModel,
    StageSeconds,
    StepKey,
    StoredModel,
)
from lockgate.errors import RegistryError, UsageError
from tasks.progress import Report, as_fraction, progress
from tasks.recorded import find_or_make
from tasks.retries import TRANSIENT
from tasks.runtimes import scan_stored_image
from tasks.servability import Outlook, look_ahead, require_servable
from tasks.sizing import require_fit
from tasks.steps import step
from tasks.workspace import Workspace

FETCH_VERSION = 1
QUANTIZE_VERSION = 2
SCAN_VERSION = 2


def fetch_key(workspace: Workspace, source: str, revision: ModelRevision, model: str) -> StepKey:
    """What a fetched and published snapshot depends on."""
    repository = workspace.settings.model_repository(model)
    inputs = {"revision": revision.to_data(), "repository": repository}
    if selected := str(parsed_source(source).files):
        inputs["files"] = selected
    return StepKey(step="fetch", version=FETCH_VERSION, inputs=inputs)


def quantize_key(
    workspace: Workspace, source: StoredModel, recipe: Recipe, calibration: CalibrationSet | None,
    model: str,
) -> StepKey:  # fmt: skip
    """What quantized weights depend on: the source's bytes, what the recipe does, what it was shown, and the versions that
    did it. A calibration set counts by its bytes, wherever the file lies."""
    return StepKey(
        step="quantize", version=QUANTIZE_VERSION,
        inputs={
            "snapshot": source.snapshot, "recipe": definition(recipe).to_data(),
            "calibration": calibration.identity.to_data() if calibration is not None else None,
            "environment": environments.environment_digest("quantization"),
            "repository": workspace.settings.model_repository(model),
        },
    )  # fmt: skip


def calibration_for(recipe: Recipe, spec: CalibrationSpec) -> CalibrationSet | None:
    """The texts that `recipe` looks at; None for a recipe that looks at none."""
    if recipe is Recipe.NONE or not definition(recipe).calibrated:
        return None
    return quantization.read_calibration(spec)


def scan_key(model: StoredModel, policy: WeightScanPolicy) -> StepKey:
    """What a scan's findings depend on: a scanner of another version may find more."""
    return StepKey(
        step="scan-weights", version=SCAN_VERSION,
        inputs={
            "snapshot": model.snapshot, "policy": policy.content_digest(),
            "scanners": scanners.engine_versions(policy),
        },
    )  # fmt: skip


@step(name="resolve-source", cache_policy=NO_CACHE, **TRANSIENT)
def resolve_source(source: str) -> ModelRevision:
    """The exact revision behind what the user wrote; a branch is resolved now and recorded."""
    return sources.resolve(parsed_source(source))


@step(name="fetch-model", cache_policy=NO_CACHE, **TRANSIENT)
def fetch_model(
    source: str, revision: ModelRevision, model: str
) -> tuple[StoredModel, StageSeconds]:
    """Fetch a revision once, hashed while it is written, and publish it as an unsigned image."""
    workspace = Workspace.current()

    def make() -> StoredModel:
        # Named by the revision, so that a fetch that was killed goes on where it stopped.
        origin = parsed_source(source)
        name = Digest.of_json([revision.to_data(), str(origin.files)]).hex
        directory = workspace.layout.root / "fetching" / name / "model"
        pull = functools.partial(_pull, workspace)
        with progress(f"fetch {revision.repo}") as report:
            snapshot = sources.fetch(
                origin, revision, directory, progress=as_fraction(report),
                options=sources.FetchOptions(pull=pull),
            )  # fmt: skip
            stored = _publish(workspace, directory, snapshot, model, report)
        shutil.rmtree(directory.parent, ignore_errors=True)
        return stored

    key = fetch_key(workspace, source, revision, model)
    return find_or_make(workspace.records, key, StoredModel, make, usable=_stored(workspace))


@step(name="check-recipe", cache_policy=NO_CACHE, **TRANSIENT)
def check_recipe(spec: ReleaseSpec, revision: ModelRevision) -> Outlook:
    """Refuse, before anything heavy, weights that could not be served, that do not fit on the declared hardware, and a recipe
    for a source that is quantized already."""
    calibration_for(spec.quantization, spec.calibration)
    outlook = look_ahead(Workspace.current(), spec, parsed_source(spec.source), revision)
    require_fit(outlook.fit)
    return outlook


@step(name="quantize-model", cache_policy=NO_CACHE)
def quantize_model(source: StoredModel, spec: ReleaseSpec) -> tuple[QuantizedModel, StageSeconds]:
    """Quantize a stored model into another stored model. Not retried: it fails for good reasons."""
    workspace, recipe = Workspace.current(), spec.quantization
    found = quantization.weight_format(workspace.materialise(source))
    # Again, and now of the very bytes: an image could not be looked into before it was fetched.
    require_servable(workspace, spec, found)
    if recipe is Recipe.NONE:
        as_it_is = QuantizedModel(model=source, source_format=found)
        return as_it_is, StageSeconds(stage="quantize", seconds=0.0, reused=True)
    calibration = calibration_for(recipe, spec.calibration)

    def make() -> QuantizedModel:
        python = environments.environment_python("quantization")
        with _Scratch(workspace) as scratch, progress(f"quantize {recipe}") as report:
            directory = scratch / "model"
            made = quantization.quantize(
                python, workspace.materialise(source), directory, recipe,
                log=workspace.layout.logs / f"quantize-{source.snapshot.short}-{recipe}.log",
                calibration=calibration, seed=calibration.identity.seed if calibration else 0,
                progress=as_fraction(report),
            )  # fmt: skip
            snapshot = sources.read_snapshot(directory)
            stored = _publish(workspace, directory, snapshot, spec.model, report)
            return QuantizedModel(
                model=stored, source_format=found, report=made,
                environment=Digest(environments.environment_digest("quantization")),
                container=workspace.settings.step_container,
            )  # fmt: skip

    key = quantize_key(workspace, source, recipe, calibration, spec.model)
    usable = _stored(workspace)
    return find_or_make(
        workspace.records,
        key,
        QuantizedModel,
        make,
        usable=lambda made: usable(made.model),
        work=recipe,
    )


@step(name="scan-weights", cache_policy=NO_CACHE)
def scan_weights(model: StoredModel, policy: Policy) -> tuple[ScanEvidence, StageSeconds]:
    """Scan every file of a stored model. A scan that is complete and not too old is used again."""
    workspace = Workspace.current()

    def make() -> ScanEvidence:
        with progress(f"scan {model.snapshot.short}") as report:
            return scanners.scan_weights(
                workspace.materialise(model), snapshot_of(workspace.store, model.image), policy.weights,
                log_directory=workspace.layout.logs, progress=as_fraction(report),
            )  # fmt: skip

    def usable(scan: ScanEvidence) -> bool:
        return _complete(scan) and not too_old(scan, policy, datetime.now(UTC))

    key = scan_key(model, policy.weights)
    return find_or_make(workspace.records, key, ScanEvidence, make, usable=usable)


@step(name="ask-source", cache_policy=NO_CACHE)
def ask_source(
    source: str, revision: ModelRevision, model: StoredModel, policy: Policy
) -> ScanEvidence | None:
    """What the Hub's own scanners say. Never recorded: they go on scanning."""
    origin = parsed_source(source)
    if origin.kind is not SourceKind.HUB or policy.weights.hub_security == "ignored":
        return None
    snapshot = snapshot_of(Workspace.current().store, model.image)
    return sources.source_evidence(origin, revision, snapshot)


@step(name="scan-image", cache_policy=NO_CACHE)
def scan_image(model: StoredModel, policy: ImageScanPolicy) -> ScanEvidence:
    """trivy over the model image. Never recorded: what trivy knows changes daily."""
    workspace = Workspace.current()
    log = workspace.layout.logs / f"trivy-image-{model.snapshot.short}.log"
    return scan_stored_image(workspace, model.image, policy, log)


def _complete(scan: ScanEvidence) -> bool:
    """A scanner that broke once may work the next time; what it could not do is never re-used."""
    return all(run.status is ScannerStatus.COMPLETED for run in scan.runs)


def is_clean(scans: list[ScanEvidence], policy: Policy) -> bool:
    """Whether these weights may be opened by the steps that follow (the gate itself comes later, over all scans)."""
    now = datetime.now(UTC)
    return scan_gate(scans, policy, now=now, required_kinds=("weights",)).decision is Decision.PASS


def describe(
    revision: ModelRevision,
    spec: ReleaseSpec,
    source: StoredModel,
    quantized: QuantizedModel | None,
    scans: list[ScanEvidence],
) -> PreparedModel:
    """The prepared model; a scan of the same subject by the same means counts once. Without `quantized` the source was not opened."""
    distinct = {scan.content_digest(): scan for scan in scans}
    prepared = PreparedModel(
        revision=revision, recipe=spec.quantization, source=source, model=source,
        scans=tuple(distinct.values()), source_kind=parsed_source(spec.source).kind,
    )  # fmt: skip
    if quantized is None:
        return prepared
    declared = read_declaration(Workspace.current().materialise(source))
    return prepared.model_copy(
        update={
            "model": quantized.model, "source_format": quantized.source_format,
            "quantization": quantized.report, "environment": quantized.environment,
            "container": quantized.container,
            "licenses": declared.licenses, "architecture": declared.architecture,
        }
    )  # fmt: skip


def parsed_source(text: str) -> Source:
    """The source that a spec names. Raises `UsageError` with what is wrong with it."""
    try:
        return Source.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _publish(
    workspace: Workspace, directory: Path, snapshot: Snapshot, model: str, report: Report
) -> StoredModel:
    """Move the files to their content-addressed place and push the image that carries them."""
    target = workspace.layout.snapshot(snapshot.digest)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(target)
    image = push_model(
        workspace.store, workspace.settings.model_repository(model), target, snapshot,
        labels={"dev.lockgate.model": model}, progress=report,
    )  # fmt: skip
    return StoredModel(snapshot=snapshot.digest, size=snapshot.size, image=image)


def _pull(workspace: Workspace, image: ImageRef, directory: Path) -> Snapshot:
    """An image of our own making by the list of files in it, any other as what it holds."""
    store = _store_of(workspace, image)
    if _is_ours(store, image):
        return pull_model(store, image, directory)
    return sources.pull_plain(store, image, directory)


def _store_of(workspace: Workspace, image: ImageRef) -> ImageStore:
    """The workspace's store, or the registry that the reference names."""
    store, host = workspace.store, image.repository.partition("/")[0]
    known = {store.location, workspace.settings.repository.partition("/")[0]}
    if host in known or not (host == "localhost" or "." in host or ":" in host):
        return store
    if store.location.startswith("oci:") and store.has_blob(image.repository, image.digest):
        return store
    return open_store(host, plain_http=workspace.settings.plain_http)


def _is_ours(store: ImageStore, image: ImageRef) -> bool:
    try:
        return LABEL_FORMAT in image_labels(store, image)
    except RegistryError:
        # An index, or no image at all; or a registry that is away, which whoever pulls will say.
        return False


def _stored(workspace: Workspace) -> Callable[[StoredModel], bool]:
    return lambda model: not missing_blobs(workspace.store, model.image)


class _Scratch:
    """A directory in the workspace (same file system as the snapshots, so a rename is enough), removed afterwards."""

    def __init__(self, workspace: Workspace) -> None:
        self.parent = workspace.layout.root / "scratch"

    def __enter__(self) -> Path:
        self.parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(dir=self.parent))
        return self.path

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
