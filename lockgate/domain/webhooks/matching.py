"""Which tracked models a hint is about. The list of tracks is the allow-list: what is in none of them leads to nothing."""

from __future__ import annotations

from collections.abc import Iterable

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.sources import SourceKind
from lockgate.domain.tracks import Follow, Track
from lockgate.domain.webhooks.authenticity import Sender
from lockgate.domain.webhooks.payloads import Hint


class Delivery(Frozen):
    """A look to be taken at one tracked model. Two with the same values are one."""

    model: str
    """As its track calls it: never a payload's own words."""
    source: str
    """Who said it of what, e.g. `hub:org/name`."""
    revision: str

    @property
    def key(self) -> Digest:
        return Digest.of_json(self.to_data())


def deliveries(hints: Iterable[Hint], tracks: Iterable[Track]) -> tuple[Delivery, ...]:
    """One for each tracked model that a hint is about."""
    tracked = tuple(tracks)
    found = (
        Delivery(model=track.model, source=f"{hint.sender}:{hint.name}", revision=hint.revision)
        for hint in hints
        for track in tracked
        if _is_about(hint, track)
    )
    return tuple(dict.fromkeys(found))


def _is_about(hint: Hint, track: Track) -> bool:
    if hint.sender is Sender.GENERIC:
        return hint.name == track.model
    origin, follow = track.origin, track.followed
    if hint.sender is Sender.HUB:
        at_hub = origin.kind is SourceKind.HUB and origin.location == hint.name
        return at_hub and follow is not None and _follows(follow, hint)
    if hint.sender in (Sender.DISTRIBUTION, Sender.HARBOR):
        # A registry does not know by which name the world calls it.
        path = origin.location.partition("/")[2]
        in_registry = origin.kind is SourceKind.OCI and path == hint.name
        return in_registry and follow is not None and _follows(follow, hint)
    return any(
        trigger.sender == hint.sender.value
        and trigger.repository == hint.name
        and hint.branch is not None
        and Follow(branch=trigger.branch).takes(hint.branch)
        for trigger in track.triggers
    )


def _follows(follow: Follow, hint: Hint) -> bool:
    name = hint.branch if follow.branch is not None else hint.tag
    return name is not None and follow.takes(name)
