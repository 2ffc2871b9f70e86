"""Where the steps of a release have logged on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from lockgate.domain.candidates import Candidate
from lockgate.domain.explanation import StepLog
from lockgate.errors import LockgateError, UsageError
from tasks.failures import release_log
from tasks.known_releases import KnownRelease, ReleaseIndex
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.explain")

STEPS = ("release", "scan", "quantize", "serve", "evaluate", "benchmark", "canary", "cluster")
OF_TASKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "resolve-source", "fetch-model", "check-recipe", "check-engine", "read-policy", "read-state",
            "describe-candidate", "open-release", "describe-test-pod", "decide-gates", "sign-candidate",
            "verify-candidate", "commit-candidate", "prepare", "sign",
        ),
        ("release",),
    ),
    **dict.fromkeys(
        ("ask-source", "scan-weights", "scan-image", "scan-manifests", "check-runtime"), ("scan",)
    ),
    **dict.fromkeys(("measure", "measure-candidate"), ("serve", "evaluate", "benchmark")),
    "quantize-model": ("quantize",),
    "observe": ("canary", "cluster"),
    "commit-transition": ("canary",),
}  # fmt: skip
"""Errors name the task that they happened in: whose logs these are."""


def logs_of(index: ReleaseIndex, known: KnownRelease) -> tuple[StepLog, ...]:
    """Every log that is there, in the order of the steps."""
    workspace, candidate = index.workspace, index.candidate(known)
    found = [
        ("release", release_log(workspace.settings, known.model, known.environment), True),
        *_scans(workspace, candidate),
        *_quantizations(workspace, known),
        *_measurements(workspace, known),
        *_rollout(index, known),
    ]
    failed = known.failure
    if failed is not None and failed.log is not None:
        step = OF_TASKS.get(failed.step or "", ("release",))[0]
        found.append((step, Path(failed.log), False))
    # A failure's log may be one of the others.
    distinct = {str(path): (name, path, shared) for name, path, shared in reversed(found)}
    logs = [
        StepLog(step=name, path=str(path), bytes=path.stat().st_size, shared=shared)
        for name, path, shared in reversed(distinct.values())
        if path.is_file()
    ]
    return tuple(sorted(logs, key=lambda log: _rank(log.step)))


def chosen(logs: tuple[StepLog, ...], step: str) -> tuple[StepLog, ...]:
    """Those of one step, or of the task that an error named: what a task logged in no file of its own is in the release's.

    Raises:
        UsageError: there is no such step, or it has logged nothing here.
    """
    names = OF_TASKS.get(step, (step,))
    found = tuple(log for log in logs if log.step in names)
    if not found and step in OF_TASKS:
        found = tuple(log for log in logs if log.step == "release")
    if not found:
        there = ", ".join(dict.fromkeys(log.step for log in logs)) or "none"
        raise UsageError(
            f"there is no log of step {step} on this machine", hint=f"steps with logs: {there}"
        )
    return found


Found = tuple[str, Path, bool]


def _rank(step: str) -> int:
    return STEPS.index(step) if step in STEPS else len(STEPS)


def _scans(workspace: Workspace, candidate: Candidate | None) -> Iterable[Found]:
    logs = workspace.layout.logs
    for name in ("picklescan", "modelaudit", "templates"):
        for path in sorted(logs.glob(f"{name}*.log")):
            yield "scan", path, True
    if candidate is None:
        return
    names = [f"trivy-runtime-{candidate.runtime.digest.short}"]
    names += [f"trivy-manifests-{candidate.digest.short}"]
    try:
        names.append(f"trivy-image-{workspace.stored_model(candidate.model).snapshot.short}")
    except LockgateError as error:
        logger.warning("which files %s holds is not known: %s", candidate.model, error.message)
    for name in names:
        yield "scan", logs / f"{name}.log", False


def _quantizations(workspace: Workspace, known: KnownRelease) -> Iterable[Found]:
    if known.outcome is not None and known.outcome.source is not None:
        short, recipe = known.outcome.source.short, known.outcome.recipe
        yield "quantize", workspace.layout.logs / f"quantize-{short}-{recipe}.log", False


def _measurements(workspace: Workspace, known: KnownRelease) -> Iterable[Found]:
    if known.candidate is None:
        return
    directory = workspace.layout.logs / f"measure-{known.candidate.short}"
    for path in sorted(directory.glob("**/*.log")):
        step = {"evaluation": "evaluate", "benchmark": "benchmark"}.get(path.parent.name, "serve")
        yield step, path, False


def _rollout(index: ReleaseIndex, known: KnownRelease) -> Iterable[Found]:
    """Traces of the canary's steps, and the logs of the replicas in the release's slot."""
    state = index.first_state(known)
    if state is None:
        return
    layout = index.workspace.layout
    for entry in known.commits:
        generation = int(entry.trailers.get("Lockgate-Generation", "0"))
        yield "canary", layout.trace(known.model, known.environment, generation), False
        yield "canary", layout.looks(known.model, known.environment, generation), False
    if index.workspace.settings.cluster != "local":
        return
    occupant = index.occupant(known)
    slot = "a" if occupant is not None and state.a == occupant else "b"
    replicas = layout.cluster / "logs"
    for path in sorted(replicas.glob(f"{known.model}-{slot}-*.log")):
        yield "cluster", path, True
    yield "cluster", layout.cluster / "agent.log", True
    yield "cluster", layout.cluster / "gateway" / "envoy.log", True
