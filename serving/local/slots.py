"""Which pods a slot should have. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lockgate.domain.digests import Digest


@dataclass(frozen=True)
class PodView:
    """What the decision needs to know of a pod."""

    name: str
    template: Digest
    ready: bool
    terminating: bool
    created: float


@dataclass(frozen=True)
class PodPlan:
    create: int
    terminate: tuple[str, ...]


def plan_pods(
    template: Digest | None,
    replicas: int,
    pods: Sequence[PodView],
    *,
    max_surge: int,
    max_unavailable: int,
) -> PodPlan:
    """The next step of a rolling update towards `replicas` pods of `template`; None: the slot goes away.

    A terminating pod still holds its cores and its memory, so it counts against the surge.
    """
    live = [pod for pod in pods if not pod.terminating]
    if template is None:
        return PodPlan(0, tuple(pod.name for pod in live))
    current = [pod for pod in live if pod.template == template]
    # Not ready ones go first, then the youngest.
    current.sort(key=lambda pod: (pod.ready, -pod.created))
    surplus = current[: max(0, len(current) - replicas)]
    kept = current[len(surplus) :]

    old = sorted(
        (pod for pod in live if pod.template != template), key=lambda p: (p.ready, p.created)
    )
    ready = sum(pod.ready for pod in (*kept, *old))
    # With neither surge nor unavailability allowed nothing could ever move.
    may_stop = max(0, ready - (replicas - max(max_unavailable, 0 if max_surge else 1)))
    stopping = []
    for pod in old:
        if not pod.ready:
            stopping.append(pod.name)
        elif may_stop > 0:
            stopping.append(pod.name)
            may_stop -= 1
    room = replicas + max_surge - len(pods)
    create = max(0, min(replicas - len(kept), room))
    return PodPlan(create, tuple([pod.name for pod in surplus] + stopping))
