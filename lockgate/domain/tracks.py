"""Tracked models: what `models/<model>/track.yaml` in the GitOps repo says is to be released unattended, where and when.

A track names a source and the branch or tag to follow there, the release spec, the environments in order, the windows in
which nothing is started, and who may approve. It starts releases; what becomes of them is decided where it always is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, ValidationError, field_validator, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.sources import ModelRevision, Source, SourceKind
from lockgate.domain.spec import ReleaseSpec
from lockgate.domain.steps import ReleaseRequest

_LABEL = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
_REF = r"^[A-Za-z0-9*?][A-Za-z0-9._/*?+-]{0,199}$"
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MOMENT = re.compile(rf"({'|'.join(_DAYS)}) ([01]\d|2[0-3]):([0-5]\d)", re.IGNORECASE)
_WEEK_MINUTES = 7 * 24 * 60
_REFERENCE = datetime(2024, 1, 1, tzinfo=UTC)
"""Any moment before a leap day: from here every cron expression that can ever fire does."""

Label = Annotated[str, Field(pattern=_LABEL)]
Pattern = Annotated[str, Field(pattern=_REF)]


class Follow(Frozen):
    """Which of a source's references is followed: one branch or tag by name, or by a shell pattern the highest version."""

    branch: Pattern | None = None
    tag: Pattern | None = None

    @model_validator(mode="after")
    def _one(self) -> Follow:
        if (self.branch is None) == (self.tag is None):
            raise ValueError("follow either a `branch` or a `tag`")
        return self

    @property
    def pattern(self) -> str:
        return str(self.branch or self.tag)

    @property
    def exact(self) -> bool:
        """Whether it is one name, which needs no list of references."""
        return not set("*?") & set(self.pattern)

    def takes(self, name: str) -> bool:
        """Whether a branch or tag of this name is followed."""
        return fnmatchcase(name, self.pattern)

    def choose(self, names: Iterable[str]) -> str | None:
        """The name that is followed now; None if there is no such."""
        return max(filter(self.takes, names), key=version_order, default=None)

    def __str__(self) -> str:
        return f"{'branch' if self.branch else 'tag'} {self.pattern}"


def version_order(name: str) -> tuple[list[tuple[int, int, str]], bool, list[tuple[int, int, str]]]:
    """Sort key by which `v1.10` is above `v1.9`, and `v1.10` above its pre-release `v1.10-rc2`."""

    def parts(text: str) -> list[tuple[int, int, str]]:
        found = re.findall(r"[0-9]+|[^0-9]+", text)
        return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in found]

    core, dash, rest = name.partition("-")
    return parts(core), not dash, parts(rest)


class Freeze(Frozen):
    """A recurring window in which no release is started; one that is under way goes on.

    Either weekly (`start: Fri 16:00`, `end: Mon 08:00`, by the clock on the wall) or `cron` with the hours that it lasts
    from there.
    """

    reason: Annotated[str, Field(min_length=1, max_length=200)]
    time_zone: str = "UTC"
    """IANA name, e.g. `Europe/Berlin`."""
    start: str | None = None
    end: str | None = None
    cron: str | None = None
    """Five fields, as Debian's cron reads them."""
    hours: Annotated[float, Field(gt=0, le=24 * 60)] | None = None
    environments: tuple[Label, ...] = ()
    """None: all."""

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        # Its errors for names that are none: ValueError, KeyError, and OSError for a directory.
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"unknown time zone {value!r}") from error
        return value

    @model_validator(mode="after")
    def _weekly_or_cron(self) -> Freeze:
        weekly, by_cron = (self.start, self.end), (self.cron, self.hours)
        if (None in weekly) == (None in by_cron) or any(weekly) == any(by_cron):
            raise ValueError("a freeze is either `start` and `end`, or `cron` and `hours`")
        if self.cron is not None:
            try:
                if len(self.cron.split()) != 5:
                    raise ValueError(f"{self.cron!r} has not five fields")
                next(CronSim(self.cron, _REFERENCE))
            except (CronSimError, StopIteration) as error:
                raise ValueError(f"{self.cron!r} is no cron expression that ever fires") from error
        elif _minute_of_week(str(self.start)) == _minute_of_week(str(self.end)):
            raise ValueError("a weekly freeze starts and ends at the same moment")
        return self

    def holds(self, at: datetime) -> bool:
        """Whether the window is open at `at` (aware). Its start belongs to it, its end does not."""
        if at.tzinfo is None:
            raise ValueError("a time without its zone")
        local = at.astimezone(ZoneInfo(self.time_zone))
        if self.cron is None:
            start, end = _minute_of_week(str(self.start)), _minute_of_week(str(self.end))
            now = (local.weekday() * 24 + local.hour) * 60 + local.minute
            return (now - start) % _WEEK_MINUTES < (end - start) % _WEEK_MINUTES
        fired = next(CronSim(self.cron, local + timedelta(seconds=1), reverse=True), None)
        return (
            fired is not None
            and self.hours is not None
            and (at.astimezone(UTC) - fired.astimezone(UTC) < timedelta(hours=self.hours))
        )


def _minute_of_week(text: str) -> int:
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} does not read like `Fri 16:00`")
    return (_DAYS.index(match[1].lower()) * 24 + int(match[2])) * 60 + int(match[3])


class TrackedEnvironment(Frozen):
    """One environment on a model's way."""

    name: Label
    promotion: Literal["automatic", "approval", "manual"] = "automatic"
    """How a revision gets here. The first environment gets what is new at the source, any other what is stable, its bake
    over, in the one before. `automatic`: at once. `approval`: its release is started, and the first raise of its canary waits
    for a signed approval. `manual`: a person names the environment."""
    approvers: tuple[Annotated[str, Field(pattern=r"^[\w.@+-]{1,100}$")], ...] = ()
    """Names or roles of those who may approve here. None: whoever `approvers` in the repository lets."""
    override: dict[str, Any] = Field(default_factory=dict)
    """Top-level keys of the release spec that differ here, e.g. `serving`, whole."""

    @field_validator("override")
    @classmethod
    def _identity_stays(cls, value: dict[str, Any]) -> dict[str, Any]:
        fixed = {"model", "environment", "source", "apiVersion", "kind"} & value.keys()
        if fixed:
            raise ValueError(f"the track itself says {', '.join(sorted(fixed))}")
        return value


class Trigger(Frozen):
    """A Git repository (of a spec, of training code, the GitOps repo itself) whose pushes and merges are worth a look."""

    sender: Literal["github", "gitlab", "gitea"]
    repository: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)+$", max_length=255)]
    """`organization/name`."""
    branch: Pattern = "main"


class Track(Frozen):
    """One tracked model."""

    apiVersion: Literal["lockgate.dev/v1"] = "lockgate.dev/v1"
    kind: Literal["Track"] = "Track"
    model: Label
    source: str
    """As in a release spec, without a revision: `hf://ORG/NAME`, `oci://HOST/REPOSITORY`, `s3://…`, `gs://…`, `dir:/PATH`."""
    follow: Follow | None = None
    """None: branch `main` at the Hub; what lies there in a directory or bucket. An image repository needs a `tag`."""
    spec: str | dict[str, Any]
    """Path of a release spec in the repository, or the spec itself without model, environment and source."""
    environments: tuple[TrackedEnvironment, ...] = Field(min_length=1, max_length=20)
    """In order."""
    freezes: tuple[Freeze, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    """What besides the source's own webhooks is worth a look at the source."""

    @model_validator(mode="after")
    def _consistent(self) -> Track:
        origin = self.origin
        named = [environment.name for environment in self.environments]
        if len(set(named)) != len(named):
            raise ValueError("an environment is named twice")
        strange = {name for freeze in self.freezes for name in freeze.environments} - set(named)
        if strange:
            raise ValueError(f"a freeze of {', '.join(sorted(strange))}, where nothing is released")
        if origin.revision is not None:
            raise ValueError("the source is without a revision: say `follow`")
        if origin.kind is SourceKind.OCI and (self.follow is None or not self.follow.tag):
            raise ValueError("of an image repository a `tag` is followed")
        if origin.kind not in (SourceKind.HUB, SourceKind.OCI) and self.follow is not None:
            raise ValueError(f"{self.source} has no branches or tags to follow")
        if isinstance(self.spec, dict):
            for environment in self.environments:
                self.release(self.spec, environment, self.source)
        elif self.spec.startswith("/") or ".." in self.spec.split("/"):
            raise ValueError(f"{self.spec!r} does not lie in the repository")
        return self

    @property
    def origin(self) -> Source:
        """The source, parsed. Raises `ValueError`."""
        source = Source.parse(self.source)
        if source.kind is SourceKind.OCI and "@" in source.location:
            raise ValueError("the source is without a digest: say `follow`")
        if source.kind is SourceKind.DIRECTORY and not source.location.startswith("/"):
            raise ValueError(f"{self.source!r} is relative: to what?")
        return source

    @property
    def followed(self) -> Follow | None:
        """What is followed, the default filled in."""
        if self.follow is None and self.origin.kind is SourceKind.HUB:
            return Follow(branch="main")
        return self.follow

    def environment(self, name: str) -> TrackedEnvironment | None:
        return next((e for e in self.environments if e.name == name), None)

    def before(self, environment: TrackedEnvironment) -> TrackedEnvironment | None:
        """The environment that comes before; None for the first."""
        place = self.environments.index(environment)
        return self.environments[place - 1] if place else None

    def frozen(self, environment: str, at: datetime) -> Freeze | None:
        """The first window that forbids a start in `environment` at `at` (aware)."""
        return next(
            (
                freeze
                for freeze in self.freezes
                if (not freeze.environments or environment in freeze.environments)
                and freeze.holds(at)
            ),
            None,
        )

    def release(
        self, document: dict[str, Any], environment: TrackedEnvironment, source: str
    ) -> ReleaseSpec:
        """The spec of one release: `document` with the track's model, the environment's own keys and the pinned `source`.

        Raises `ValueError` for a document of another model, a spec that is not valid, or one whose canary has no raise that
        an approval could be waited for at.
        """
        if document.get("model", self.model) != self.model:
            raise ValueError(f"the spec is of {document['model']!r}, not of {self.model}")
        identity = {"model": self.model, "environment": environment.name, "source": source}
        try:
            spec = ReleaseSpec.model_validate({**document, **environment.override, **identity})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"spec for {environment.name}: {where}: {first['msg']}") from error
        if environment.promotion != "approval":
            return spec
        steps = spec.canary.steps
        if not steps:
            raise ValueError(f"{environment.name}: no canary step at which to wait for approval")
        # Also a mirror or header step: what users are not yet asked about is approved as well.
        steps = (steps[0].model_copy(update={"approval": True}), *steps[1:])
        return spec.model_copy(update={"canary": spec.canary.model_copy(update={"steps": steps})})


class Pinned(Frozen):
    """What is followed, resolved at the source."""

    revision: ModelRevision
    source: str
    """The source as a release spec names exactly this revision, where it can be named: not in a directory or bucket."""


class TrackedRelease(Frozen):
    """Parameter of the flow that carries out what a track started."""

    pinned: Pinned
    request: ReleaseRequest

    @property
    def key(self) -> Digest:
        """Names it in the store and in Prefect: the revision and all of the spec, so a changed spec is asked for anew."""
        spec = self.request.spec.to_data()
        return Digest.of_json({"revision": self.pinned.revision.to_data(), "spec": spec})


class TrackRecord(Frozen):
    """How a tracked release ended, as far as the flow that ran it saw."""

    pinned: Pinned
    candidate: Digest
    result: Literal["promoted", "rolled_back", "aborted", "refused", "waiting", "already_stable"]
    reason: str
