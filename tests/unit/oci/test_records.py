"""Finished steps and documents, found by what went into them."""

from __future__ import annotations

import pytest

from lockgate.adapters.oci.layout import LayoutStore
from lockgate.adapters.oci.records import StepRecords
from lockgate.domain.digests import Digest
from lockgate.errors import IntegrityError, RegistryError

KEY, OTHER = Digest.of_json(["package", 1]), Digest.of_json(["package", 2])


def test_a_finished_step_is_found_by_another_process_and_an_unfinished_one_is_not(
    store: LayoutStore, repository: str
) -> None:
    StepRecords(store, repository).record(KEY, {"image": "x@sha256:1", "seconds": 1.5})
    again = StepRecords(LayoutStore(store.root), repository)
    assert again.find(KEY) == {"image": "x@sha256:1", "seconds": 1.5}
    assert again.find(OTHER) is None
    assert StepRecords(store, "lockgate.local/other").find(KEY) is None


def test_recording_again_replaces_and_the_same_record_changes_nothing(
    store: LayoutStore, repository: str
) -> None:
    records = StepRecords(store, repository)
    records.record(KEY, {"v": 1})
    index = (store.root / "index.json").read_bytes()
    records.record(KEY, {"v": 1})
    assert (store.root / "index.json").read_bytes() == index
    records.record(KEY, {"v": 2})
    assert records.find(KEY) == {"v": 2}


def test_a_record_under_another_steps_name_is_refused(store: LayoutStore, repository: str) -> None:
    records = StepRecords(store, repository)
    records.record(KEY, {"v": 1})
    body, media_type = store.get_manifest(repository, f"step-{KEY.hex}")
    store.put_manifest(repository, body, media_type, f"step-{OTHER.hex}")
    with pytest.raises(RegistryError, match="another step's"):
        records.find(OTHER)


def test_a_document_is_found_by_its_digest_and_not_when_it_was_changed(
    store: LayoutStore, repository: str
) -> None:
    records = StepRecords(store, repository)
    document = {"verdict": "pass", "wörds": [1, 2.5, None]}
    digest = records.put_document(document)
    assert digest == Digest.of_json(document) == records.put_document(document)
    assert records.get_document(digest) == document
    path = store.blob_path(digest)
    path.write_bytes(path.read_bytes().replace(b"pass", b"fail"))
    with pytest.raises(IntegrityError):
        records.get_document(digest)
    with pytest.raises(RegistryError, match="holds no document"):
        records.get_document(KEY)


def test_a_document_that_is_not_json_is_not_kept(store: LayoutStore, repository: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        StepRecords(store, repository).put_document({"score": float("nan")})
