"""Whoever may write to a repository may attach anything: it neither helps, nor harms what is sound, nor ends the verification."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.adapters.signing import attachments, attest, sign_image
from lockgate.adapters.signing.dsse import BUNDLE_TYPE
from lockgate.domain.attestation import GATE_TYPE, PROVENANCE_TYPE, SIGNATURE_TYPE, statement
from lockgate.domain.digests import Digest, canonical_json
from lockgate.domain.stores import EMPTY_DIGEST, IMAGE_MANIFEST, Descriptor
from lockgate.errors import RegistryError
from tests.amounts import examples

pytestmark = pytest.mark.slow

World = Any
TIME = "2026-01-02T03:04:05Z"
NOW = datetime(2026, 1, 3, tzinfo=UTC)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=8)
    | st.sampled_from(
        ["sha256:" + "0" * 64, "e30=", "2026-01-02", "\ud800".encode("utf-8", "replace").decode()]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
DEEP = b"[" * 200_000


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [here, *(path for key, part in inner for path in places(part, (*here, key)))]


@dataclass(frozen=True)
class Damage:
    """Drawn before anything is signed: signatures differ from run to run, and draws must not."""

    place: int
    left_out: bool
    instead: Any
    kind: str
    annotation: tuple[int, str] | None


DAMAGES = st.builds(
    Damage,
    place=st.integers(0, 9_999),
    left_out=st.booleans(),
    instead=JSON,
    kind=st.sampled_from([GATE_TYPE, PROVENANCE_TYPE]),
    annotation=st.none() | st.tuples(st.integers(0, 9_999), st.text(max_size=20)),
)


def changed(damage: Damage, value: Any) -> Any:
    """The value with one part of it replaced by anything, or left out."""
    value = copy.deepcopy(value)
    there = places(value)
    *way, last = ("", *there[damage.place % len(there)])
    holder: Any = {"": value}
    root = holder
    for key in way:
        holder = holder[key]
    if isinstance(holder, dict) and last and damage.left_out:
        del holder[last]
    else:
        holder[last] = damage.instead
    return root.get("")


def bundle_of(world: World, body: bytes) -> bytes:
    """The very payload, signed with the right key past every rule of the signer."""
    return world.signer._sign_statement(body)


def a_bundle(world: World, damage: Damage) -> None:
    sound = json.loads(bundle_of(world, statement(world.image, SIGNATURE_TYPE, {})))
    body = canonical_json(changed(damage, sound))
    attachments.attach_bundle(world.store, world.image, body, SIGNATURE_TYPE, TIME)


def a_signed_statement(world: World, damage: Damage) -> None:
    predicates = {GATE_TYPE: world.gate().to_data(), PROVENANCE_TYPE: world.provenance()}
    sound = json.loads(statement(world.image, damage.kind, predicates[damage.kind]))
    bundle = bundle_of(world, canonical_json(changed(damage, sound)))
    attachments.attach_bundle(world.store, world.image, bundle, damage.kind, TIME)


def a_referrer(world: World, damage: Damage) -> None:
    """The manifest that holds a bundle; its subject stays, or it would be nobody's."""
    bundle = bundle_of(world, statement(world.image, SIGNATURE_TYPE, {}))
    digest = attachments.attach_bundle(world.store, world.image, bundle, SIGNATURE_TYPE, TIME)
    sound = json.loads(world.store.get_manifest(world.image.repository, digest)[0])
    layers = changed(damage, sound["layers"])
    body = canonical_json({**sound, "layers": layers})
    world.store.put_manifest(world.image.repository, body, IMAGE_MANIFEST)


@pytest.fixture
def released(world: World, tmp_path: Path) -> Callable[[], World]:
    """A release of its own as often as asked: what one try attached is not there in the next."""
    world.release()
    return copies(world, tmp_path)


@pytest.fixture
def attested(world: World, tmp_path: Path) -> Callable[[], World]:
    """The same without a signature: the legacy ones decide."""
    attest(world.store, world.image, world.signer, PROVENANCE_TYPE, world.provenance())
    attest(world.store, world.image, world.signer, GATE_TYPE, world.gate())
    return copies(world, tmp_path)


def copies(world: World, place: Path) -> Callable[[], World]:
    def copy() -> World:
        root = Path(tempfile.mkdtemp(dir=place))
        shutil.copytree(world.store.root, root, dirs_exist_ok=True)
        return replace(world, store=type(world.store)(root))

    return copy


@pytest.mark.parametrize("attach", [a_bundle, a_signed_statement, a_referrer])
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES)
def test_anything_attached_beside_a_release_changes_nothing_but_what_speaks_against_it(
    released: Callable[[], World], attach: Callable[[World, Damage], None], damage: Damage
) -> None:
    world = released()
    attach(world, damage)
    report = world.verify(max_age=timedelta(days=30), now=NOW)
    rules = {failure.rule for failure in report.failures}
    # A sound predicate of another time is the newest, or the only one that counts, and may be too old or of the future.
    allowed = {"gate", "age"} if attach is a_signed_statement else set()
    assert rules <= allowed, report.failures
    assert report.signer == world.signer.name


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES)
def test_a_damaged_legacy_signature_before_a_sound_one_changes_nothing(
    attested: Callable[[], World], damage: Damage
) -> None:
    world = attested()
    sound = attachments.legacy_payload(world.image)
    payload = canonical_json(changed(damage, json.loads(sound)))
    annotations = dict(world.signer._sign_payload(payload))
    if damage.annotation is not None:
        index, text = damage.annotation
        names = [*annotations, "dev.sigstore.cosign/certificate"]
        annotations[names[index % len(names)]] = text
    attachments.attach_legacy(world.store, world.image, payload, annotations)
    attachments.attach_legacy(world.store, world.image, sound, world.signer._sign_payload(sound))
    report = world.verify()
    assert report.ok, report.failures
    assert report.signer == world.signer.name


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES)
def test_whatever_the_tag_of_legacy_signatures_names_is_one_or_none(
    attested: Callable[[], World], damage: Damage
) -> None:
    world = attested()
    payload = attachments.legacy_payload(world.image)
    annotations = world.signer._sign_payload(payload)
    made = attachments.attach_legacy(world.store, world.image, payload, annotations)
    repository, tag = world.image.repository, attachments.legacy_tag(world.image.digest)
    sound = json.loads(world.store.get_manifest(repository, made)[0])
    body = canonical_json({**sound, "layers": changed(damage, sound["layers"])})
    world.store.put_manifest(repository, body, IMAGE_MANIFEST, tag)
    assert {failure.rule for failure in world.verify().failures} <= {"signature"}


def test_a_signature_whose_content_was_never_there_is_none(released: Callable[[], World]) -> None:
    world = released()
    repository, image = world.image.repository, world.image
    absent = Descriptor(BUNDLE_TYPE, Digest.of_bytes(b"absent"), 5)
    subject = world.store.get_manifest(repository, image.digest)[0]
    manifest = {
        "artifactType": BUNDLE_TYPE,
        "layers": [absent.to_data()],
        "subject": Descriptor(IMAGE_MANIFEST, image.digest, len(subject)).to_data(),
    }
    world.store.put_manifest(repository, canonical_json(manifest), IMAGE_MANIFEST)
    legacy = {"layers": [replace(absent, media_type=attachments.SIMPLE_SIGNING).to_data()]}
    tag = attachments.legacy_tag(image.digest)
    world.store.put_manifest(repository, canonical_json(legacy), IMAGE_MANIFEST, tag)
    report = world.verify()
    assert report.ok
    assert any("is not there" in line for line in report.ignored)


@pytest.mark.parametrize(
    ("moment", "rules"),
    [
        ("0001-01-01T00:00:00+14:00", {"age"}),
        ("9999-12-31T23:59:59-12:00", {"age"}),
        ("2026-01-02T03:04:05", {"gate"}),
        ("2026-01-02", {"gate"}),
        ("infinity", {"gate"}),
    ],
)
@pytest.mark.parametrize("field", ["decided_at", "scanned_at"])
def test_a_time_without_offset_or_from_the_end_of_the_calendar_admits_nothing(
    world: World, field: str, moment: str, rules: set[str]
) -> None:
    sign_image(world.store, world.image, world.signer)
    attest(world.store, world.image, world.signer, PROVENANCE_TYPE, world.provenance())
    said = {**world.gate(scanned_at=TIME).to_data(), field: moment}
    bundle = bundle_of(world, statement(world.image, GATE_TYPE, said))
    attachments.attach_bundle(world.store, world.image, bundle, GATE_TYPE, TIME)
    report = world.verify(max_age=timedelta(days=30), now=NOW)
    assert {failure.rule for failure in report.failures} == rules
    attest(world.store, world.image, world.signer, GATE_TYPE, world.gate())
    beside = world.verify(max_age=timedelta(days=30), now=NOW)
    newest = moment.startswith("9999") and field == "decided_at"
    assert (
        beside.ok
        or (newest and {f.rule for f in beside.failures} == {"age"})
        or (field == "scanned_at" and {f.rule for f in beside.failures} == {"age"})
    )


def test_what_nests_too_deeply_neither_helps_nor_ends_the_verification(world: World) -> None:
    world.release()
    attachments.attach_bundle(world.store, world.image, DEEP, SIGNATURE_TYPE, TIME)
    signed = world.signer._sign_statement(DEEP)
    attachments.attach_bundle(world.store, world.image, signed, SIGNATURE_TYPE, TIME)
    annotations = world.signer._sign_payload(DEEP)
    attachments.attach_legacy(world.store, world.image, DEEP, annotations)
    assert world.verify().ok
    (world.store.root / "index.json").write_bytes(DEEP)
    report = world.verify()
    assert {failure.rule for failure in report.failures} == {"store"}
    with pytest.raises(RegistryError, match=r"nest(s|ed) too deeply"):
        report.require()


@pytest.mark.parametrize("where", ["layers", "annotations", "mediaType", "payloadType", "type"])
def test_nesting_that_can_just_be_read_ends_no_verification(
    request: pytest.FixtureRequest, where: str
) -> None:
    """What JSON's reader still takes may be too deep for whoever reads it again, or writes it into a message."""
    make = request.getfixturevalue("attested" if where == "type" else "released")
    for depth in range(500, 1000, 9):
        world = make()
        attach_nested(world, where, "[" * depth + "]" * depth)
        report = world.verify()
        rules = {failure.rule for failure in report.failures}
        assert rules == ({"signature"} if where == "type" else set()), (depth, report.failures)


def attach_nested(world: World, where: str, deep: str) -> None:
    """Something in whose `where` the text stands."""

    def with_it(value: Any) -> bytes:
        return json.dumps(value).replace('"DEEP"', deep).encode()

    if where == "type":
        payload = with_it({"critical": {where: "DEEP"}})
        annotations = world.signer._sign_payload(payload)
        attachments.attach_legacy(world.store, world.image, payload, annotations)
    elif where in ("mediaType", "payloadType"):
        bundle = json.loads(bundle_of(world, statement(world.image, SIGNATURE_TYPE, {})))
        (bundle if where == "mediaType" else bundle["dsseEnvelope"])[where] = "DEEP"
        attachments.attach_bundle(world.store, world.image, with_it(bundle), SIGNATURE_TYPE, TIME)
    else:
        subject = world.store.get_manifest(world.image.repository, world.image.digest)[0]
        layer = {"mediaType": BUNDLE_TYPE, "digest": EMPTY_DIGEST, "size": 2, "annotations": "DEEP"}
        manifest = {
            "artifactType": BUNDLE_TYPE,
            "layers": "DEEP" if where == "layers" else [layer],
            "subject": Descriptor(IMAGE_MANIFEST, world.image.digest, len(subject)).to_data(),
        }
        # What is too deep already when it is stored is refused there.
        with contextlib.suppress(RegistryError):
            world.store.put_manifest(world.image.repository, with_it(manifest), IMAGE_MANIFEST)
