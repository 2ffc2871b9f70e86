"""Scan again what is in production: weekly, since scanners and databases learn of old bytes what they did not know at the gate."""

from __future__ import annotations

import logging

from prefect import flow

from flows.calling import run_step
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.policy import Policy
from lockgate.domain.rescan import RescanOutcome, RescanRecord
from lockgate.errors import LockgateError
from tasks import releasing, rescanning
from tasks.recorded import handed_over
from tasks.rescanning import Rescanned

logger = logging.getLogger("lockgate.rescan")


class ScanServedRequest(Frozen):
    candidate: Candidate
    policy: Policy


@flow(name="scan-served", flow_run_name="scan-served-{request.candidate.serving.served_model_name}")
def scan_served(request: ScanServedRequest) -> Rescanned:
    """The part that touches untrusted bytes: it holds no key and no Git token."""
    found = rescanning.scan_served(request.candidate, request.policy)
    return handed_over("scan-served", request, found)


@flow(name="rescan")
def rescan(model: str | None = None, environment: str | None = None) -> list[RescanOutcome]:
    """Scan weights and images of every slot in service by the policy and databases of now, keep what was found, tell of it, and
    hold what the policy wants held. Two slots of one candidate are scanned once.

    Raises:
        UsageError: a model is named that nothing serves.
        LockgateError: something could not be scanned at all; the others were.
    """
    policy = releasing.read_policy()
    records: dict[Digest, RescanRecord] = {}
    outcomes: list[RescanOutcome] = []
    failed: dict[Digest, LockgateError] = {}
    for served in rescanning.read_served(model, environment):
        candidate = served.candidate
        if candidate.digest in failed:
            continue
        if candidate.digest not in records:
            try:
                found = run_step(
                    scan_served, ScanServedRequest(candidate=candidate, policy=policy), Rescanned
                )
            except LockgateError as error:
                failed[candidate.digest] = error
                continue
            records[candidate.digest] = rescanning.keep_rescan(candidate, found, policy)
        outcome = rescanning.act_on_rescan(served, records[candidate.digest], policy)
        logger.info("%s", outcome.as_text())
        outcomes.append(outcome)
    if failed:
        said = "; ".join(f"{digest.short}: {e.message}" for digest, e in failed.items())
        first = next(iter(failed.values()))
        raise LockgateError(f"not scanned: {said}", hint=first.next_step, log=first.log)
    return outcomes
