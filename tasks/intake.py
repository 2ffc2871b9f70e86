"""From a source to a scanned model image: resolve, fetch, quantize, scan, package."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

import lockgate
from lockgate import environments
from lockgate.adapters import quantization, scanners, sources
from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.copying import copy_image
from lockgate.adapters.oci.package import missing_blobs, pull_model, push_model, snapshot_of
from lockgate.adapters.scanners import trivy
from lockgate.domain.calibration import CalibrationSet
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScanEvidence, ScannerStatus
from lockgate.domain.gates import Decision
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import ImageScanPolicy, Policy, WeightScanPolicy
from lockgate.domain.recipes import definition
from lockgate.domain.sources import ModelRevision, Snapshot, Source
from lockgate.domain.spec import CalibrationSpec, Recipe, ReleaseSpec
from lockgate.domain.steps import (
    PreparedModel,
    QuantizedModel,
    StageSeconds,
    StepKey,
    StoredModel,
)
from lockgate.errors import UsageError
from tasks.progress import Report, as_fraction, progress
from tasks.recorded import find_or_make
from tasks.retries import TRANSIENT
from tasks.servability import Outlook, look_ahead, require_servable
from tasks.workspace import Workspace

FETCH_VERSION = 1
QUANTIZE_VERSION = 2
SCAN_VERSION = 1


def fetch_key(workspace: Workspace, revision: ModelRevision, model: str) -> StepKey:
    """What a fetched and published snapshot depends on."""
    repository = workspace.settings.model_repository(model)
    return StepKey(
        step="fetch", version=FETCH_VERSION,
        inputs={"revision": revision.to_data(), "repository": repository},
    )  # fmt: skip


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
            "scanners": {"structure": lockgate.__version__, "picklescan": version("picklescan")},
        },
    )  # fmt: skip


@task(name="resolve-source", cache_policy=NO_CACHE, **TRANSIENT)
def resolve_source(source: str) -> ModelRevision:
    """The exact revision behind what the user wrote; a branch is resolved now and recorded."""
    return sources.resolve(parsed_source(source))


@task(name="fetch-model", cache_policy=NO_CACHE, **TRANSIENT)
def fetch_model(
    source: str, revision: ModelRevision, model: str
) -> tuple[StoredModel, StageSeconds]:
    """Fetch a revision once, hashed while it is written, and publish it as an unsigned image."""
    workspace = Workspace.current()

    def make() -> StoredModel:
        # Named by the revision, so that a fetch that was killed goes on where it stopped.
        name = Digest.of_json(revision.to_data()).hex
        directory = workspace.layout.root / "fetching" / name / "model"
        pull = functools.partial(pull_model, workspace.store)
        with progress(f"fetch {revision.repo}") as report:
            snapshot = sources.fetch(
                parsed_source(source), revision, directory, progress=as_fraction(report),
                options=sources.FetchOptions(pull=pull),
            )  # fmt: skip
            stored = _publish(workspace, directory, snapshot, model, report)
        shutil.rmtree(directory.parent, ignore_errors=True)
        return stored

    key = fetch_key(workspace, revision, model)
    return find_or_make(workspace.records, key, StoredModel, make, usable=_stored(workspace))


@task(name="check-recipe", cache_policy=NO_CACHE, **TRANSIENT)
def check_recipe(spec: ReleaseSpec, revision: ModelRevision) -> Outlook:
    """Refuse, before anything heavy, weights that could not be served, and a recipe for a source that is quantized already."""
    calibration_for(spec.quantization, spec.calibration)
    return look_ahead(Workspace.current(), spec, parsed_source(spec.source), revision)


@task(name="quantize-model", cache_policy=NO_CACHE)
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
            return QuantizedModel(model=stored, source_format=found, report=made)

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


@task(name="scan-weights", cache_policy=NO_CACHE)
def scan_weights(model: StoredModel, policy: WeightScanPolicy) -> tuple[ScanEvidence, StageSeconds]:
    """Scan every file of a stored model."""
    workspace = Workspace.current()

    def make() -> ScanEvidence:
        with progress(f"scan {model.snapshot.short}") as report:
            return scanners.scan_weights(
                workspace.materialise(model), snapshot_of(workspace.store, model.image), policy,
                log_directory=workspace.layout.logs, progress=as_fraction(report),
            )  # fmt: skip

    return find_or_make(
        workspace.records, scan_key(model, policy), ScanEvidence, make, usable=_complete
    )


@task(name="scan-image", cache_policy=NO_CACHE)
def scan_image(model: StoredModel, policy: ImageScanPolicy) -> ScanEvidence:
    """trivy over the model image. Never recorded: what trivy knows changes daily."""
    workspace = Workspace.current()
    log = workspace.layout.logs / f"trivy-image-{model.snapshot.short}.log"
    location = workspace.settings.store_location
    if location.startswith("oci:"):
        layout = Path(location.removeprefix("oci:"))
        return trivy.scan_image_layout(layout, model.image, policy, log=log)
    with _Scratch(workspace) as layout:
        local = open_store(f"oci:{layout}")
        image = copy_image(
            workspace.store, model.image, local, model.image.repository, referrers=False
        )
        return trivy.scan_image_layout(layout, image, policy, log=log)


def _complete(scan: ScanEvidence) -> bool:
    """A scanner that broke once may work the next time; what it could not do is never re-used."""
    return all(run.status is ScannerStatus.COMPLETED for run in scan.runs)


def is_clean(scan: ScanEvidence, policy: Policy) -> bool:
    """Whether these weights may be opened by the steps that follow (the gate itself comes later, over all scans)."""
    return scan_gate([scan], policy, required_kinds=("weights",)).decision is Decision.PASS


def describe(
    revision: ModelRevision,
    spec: ReleaseSpec,
    source: StoredModel,
    quantized: QuantizedModel | None,
    scans: list[ScanEvidence],
) -> PreparedModel:
    """The prepared model; a scan of the same subject by the same means counts once. Without `quantized` the source was not opened."""
    distinct = {scan.content_digest(): scan for scan in scans}
    return PreparedModel(
        revision=revision, recipe=spec.quantization, source=source,
        model=quantized.model if quantized is not None else source,
        scans=tuple(distinct.values()),
        source_format=quantized.source_format if quantized is not None else None,
        quantization=quantized.report if quantized is not None else None,
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
