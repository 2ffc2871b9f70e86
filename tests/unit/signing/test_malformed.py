"""Whoever may write to a repository may attach anything: it neither helps, nor harms what is sound, nor ends the verification."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.adapters.signing import attachments
from lockgate.domain.attestation import GATE_TYPE, PROVENANCE_TYPE, SIGNATURE_TYPE, statement
from lockgate.domain.digests import canonical_json
from lockgate.domain.stores import IMAGE_MANIFEST
from lockgate.errors import RegistryError

pytestmark = pytest.mark.slow

World = Any
TIME = "2026-01-02T03:04:05Z"
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


def a_legacy_signature(world: World, damage: Damage) -> None:
    payload = canonical_json(changed(damage, json.loads(attachments.legacy_payload(world.image))))
    annotations = dict(world.signer._sign_payload(payload))
    if damage.annotation is not None:
        index, text = damage.annotation
        names = [*annotations, "dev.sigstore.cosign/certificate"]
        annotations[names[index % len(names)]] = text
    attachments.attach_legacy(world.store, world.image, payload, annotations)


def a_referrer(world: World, damage: Damage) -> None:
    """The manifest that holds a bundle; its subject stays, or it would be nobody's."""
    bundle = bundle_of(world, statement(world.image, SIGNATURE_TYPE, {}))
    digest = attachments.attach_bundle(world.store, world.image, bundle, SIGNATURE_TYPE, TIME)
    sound = json.loads(world.store.get_manifest(world.image.repository, digest)[0])
    layers = changed(damage, sound["layers"])
    body = canonical_json({**sound, "layers": layers})
    world.store.put_manifest(world.image.repository, body, IMAGE_MANIFEST)


@pytest.mark.parametrize("attach", [a_bundle, a_signed_statement, a_legacy_signature, a_referrer])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES)
def test_anything_attached_beside_a_release_changes_nothing_but_what_speaks_against_it(
    world: World, attach: Callable[[World, Damage], None], damage: Damage
) -> None:
    world.release()
    attach(world, damage)
    report = world.verify()
    rules = {failure.rule for failure in report.failures}
    assert rules <= ({"gate"} if attach is a_signed_statement else set()), report.failures
    assert report.signer == world.signer.name


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
