"""One release of a model in an environment at a time: a second one is told so before hours of work, or waits its turn.

That two never meet in Git is Git's to see to, at the first commit; here it is seen as early as it can be.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.cache_policies import NO_CACHE

from lockgate.adapters import sources
from lockgate.domain.candidates import Candidate
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import QuantizedModel, StoredModel
from lockgate.errors import GitError, Refused, RegistryError, SourceError
from tasks.bases import with_bases
from tasks.intake import calibration_for, fetch_key, parsed_source, quantize_key
from tasks.lease import ALONE_SECONDS, LEASE_SECONDS, release_alone
from tasks.recorded import recorded
from tasks.retries import TRANSIENT
from tasks.steps import step
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")

PATIENCE_SECONDS = LEASE_SECONDS + 5
"""By then the lease of a release that died has ended."""
LOOK_SECONDS = 15.0
HINT = (
    "`lockgate release SPEC --wait` begins when that one has ended; `lockgate status` shows it, "
    "`lockgate rollback` or `lockgate promote` ends it"
)


@contextmanager
def turn(
    spec: ReleaseSpec, *, wait: bool, patience: float = PATIENCE_SECONDS, every: float = LOOK_SECONDS
) -> Iterator[None]:  # fmt: skip
    """Be the only release of the model there that is being made, while the block runs.

    `wait`: until the one that is being made has ended, in Git too; without, a release is not waited for longer than `patience`.

    Raises:
        LeaseHeld: another release of the model there is being made.
        Refused: `wait`, and the other one has not ended for `ALONE_SECONDS`.
    """
    limit = ALONE_SECONDS if wait else patience
    with release_alone(spec.model, spec.environment, patience=limit, hint=HINT):
        if wait:
            _until_free(spec, every)
        yield


def _until_free(spec: ReleaseSpec, every: float) -> None:
    deadline = time.monotonic() + ALONE_SECONDS
    told = False
    while True:
        try:
            refuse_beside_another(Workspace.current(), spec)
        except Refused as refusal:
            if time.monotonic() > deadline:
                raise
            if not told:
                logger.warning("waiting: %s", refusal.message)
                told = True
        except (GitError, SourceError, RegistryError) as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("waiting, and cannot look: %s", error.message)
        else:
            return
        time.sleep(every)


@step(name="look-beside", cache_policy=NO_CACHE, **TRANSIENT)
def look_beside(spec: ReleaseSpec) -> None:
    """`refuse_beside_another`, where the release begins."""
    refuse_beside_another(Workspace.current(), spec)


def refuse_beside_another(workspace: Workspace, spec: ReleaseSpec) -> None:
    """Nothing where nothing is under way, or what is under way is what the spec makes.

    A candidate that is under way has been made: where the store knows of none that this spec made, it is another one.

    Raises:
        Refused: another release is under way there.
    """
    repository = workspace.gitops
    repository.sync()
    state = repository.read_state(spec.model, spec.environment)
    release = state.release_under_way
    if release is None:
        return
    made = _made(workspace, spec)
    if made is not None and made.digest in _standing(state):
        return
    raise Refused(
        f"release {release} is under way in {spec.model}/{spec.environment} ({state.phase}): it has to end first",
        hint=HINT,
    )  # fmt: skip


def _standing(state: ReleaseState) -> set[object]:
    return {o.candidate.digest for o in (state.a, state.b) if o is not None}


def _made(workspace: Workspace, spec: ReleaseSpec) -> Candidate | None:
    """The candidate that an earlier run made of this spec, and of what its source is now; None where none is recorded."""
    records = workspace.records
    revision = sources.resolve(parsed_source(spec.source))
    fetched = recorded(
        records, fetch_key(workspace, spec.source, revision, spec.model), StoredModel
    )
    if fetched is None:
        return None
    model: StoredModel = fetched
    if spec.quantization is not Recipe.NONE:
        calibration = calibration_for(spec.quantization, spec.calibration)
        key = quantize_key(workspace, fetched, spec.quantization, calibration, spec.model)
        quantized = recorded(records, key, QuantizedModel)
        if quantized is None:
            return None
        model = quantized.model
    runtime = spec.runtime or workspace.local_runtime(spec.serving.engine)
    candidate = Candidate(model=model.image, runtime=runtime, serving=spec.serving)
    return with_bases(workspace, spec.model, spec.environment, candidate)
