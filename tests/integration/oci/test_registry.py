"""Models, signatures and records in a real registry."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.copying import copy_image
from lockgate.adapters.oci.images import read_image_manifest
from lockgate.adapters.oci.package import find_model, pull_model, push_model, snapshot_of
from lockgate.adapters.oci.records import StepRecords
from lockgate.adapters.signing import KeySigner, attest, generate_key, sign_image, verify
from lockgate.domain.attestation import SBOM_TYPE
from lockgate.domain.digests import Digest
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.domain.stores import ImageStore
from lockgate.errors import IntegrityError, RegistryError

Model = tuple[Path, Snapshot]
Registry = Any
LARGE = 24 * 1024 * 1024
LABELS = {"dev.lockgate.model": "demo"}


@pytest.fixture
def signer(tmp_path: Path) -> KeySigner:
    generate_key(tmp_path / "release.key", tmp_path / "release.pub")
    return KeySigner(tmp_path / "release.key")


def test_a_model_is_the_same_image_in_a_registry_and_in_a_layout_and_comes_back_whole(
    registry: Registry, model: Model, tmp_path: Path
) -> None:
    store = open_store(registry.host)
    ref = push_model(store, f"{registry.host}/models/demo", *model, labels=LABELS)
    layout = open_store(f"oci:{tmp_path / 'layout'}")
    assert push_model(layout, "lockgate.local/demo", *model, labels=LABELS).digest == ref.digest
    assert find_model(store, ref.repository, model[1].digest, labels=LABELS) == ref
    assert snapshot_of(store, ref) == model[1]
    assert pull_model(store, ref, tmp_path / "pulled") == model[1]
    weights = (tmp_path / "pulled" / "model.safetensors").read_bytes()
    assert weights == (model[0] / "model.safetensors").read_bytes()


def test_a_variant_sends_only_what_changed_and_another_repository_nothing(
    registry: Registry, model: Model, make_proxy: Callable[..., Any]
) -> None:
    proxy = make_proxy(registry.port, cut_after=0, cuts=0)
    store = open_store(proxy.host)
    push_model(store, f"{proxy.host}/models/demo", *model, labels=LABELS)
    assert proxy.forwarded > LARGE
    before = proxy.forwarded
    directory, snapshot = model
    (directory / "config.json").write_bytes(b'{"quantization": "int8"}')
    config = SnapshotFile(
        path="config.json", size=24, digest=Digest.of_bytes(b'{"quantization": "int8"}')
    )
    variant = Snapshot.of([config, *snapshot.files[1:]])
    ref = push_model(store, f"{proxy.host}/models/demo", directory, variant, labels=LABELS)
    push_model(
        store,
        f"{proxy.host}/models/other",
        directory,
        variant,
        labels=LABELS,
        mount_from=[ref.repository],
    )
    assert proxy.forwarded - before < LARGE / 100


def test_an_upload_that_breaks_off_is_done_in_the_end_and_a_download_goes_on_where_it_was(
    registry: Registry, model: Model, make_proxy: Callable[..., Any], tmp_path: Path
) -> None:
    proxy = make_proxy(registry.port, cut_after=LARGE // 3, cuts=2)
    store = open_store(proxy.host)
    ref = push_model(store, f"{proxy.host}/models/demo", *model, labels=LABELS)
    assert proxy.cuts_left == 0

    proxy = make_proxy(registry.port, cut_after=LARGE // 3, cuts=2)
    ref = ref.model_copy(update={"repository": f"{proxy.host}/models/demo"})
    assert pull_model(open_store(proxy.host), ref, tmp_path / "pulled") == model[1]
    assert proxy.cuts_left == 0
    assert proxy.forwarded < 1.5 * LARGE


def test_dockers_registry_lets_nobody_go_on_after_a_request_that_broke_off(
    registry: Registry,
) -> None:
    """Why an upload is not continued by the next process: its address works between two requests, and no more after half of
    one."""
    piece = bytes(1 << 20)
    octets = {"Content-Type": "application/octet-stream"}

    def asked(client: httpx.Client, method: str, address: str, **said: Any) -> httpx.Response:
        return client.request(method, address, timeout=30, **said)

    with httpx.Client(trust_env=False) as first, httpx.Client(trust_env=False) as second:
        opened = asked(first, "POST", f"http://{registry.host}/v2/models/demo/blobs/uploads/")
        begun = asked(first, "PATCH", opened.headers["Location"], content=piece, headers=octets)
        there = asked(second, "GET", begun.headers["Location"])
        assert (there.status_code, there.headers["Range"]) == (204, f"0-{len(piece) - 1}")
        address = httpx.URL(there.headers["Location"])
        with socket.create_connection((address.host, address.port)) as half:
            head = f"PATCH {address.raw_path.decode()} HTTP/1.1\r\nHost: {registry.host}\r\n"
            half.sendall(f"{head}Content-Length: {2 * len(piece)}\r\n\r\n".encode() + piece)
        for _ in range(200):
            there = asked(second, "GET", str(address))
            if there.status_code != 204:
                break
            time.sleep(0.05)
        assert (there.status_code, "BLOB_UPLOAD_INVALID" in there.text) == (404, True)


def test_signatures_are_found_without_a_referrers_api_and_travel_with_the_image(
    registry: Registry, model: Model, signer: KeySigner, tmp_path: Path
) -> None:
    layout = open_store(f"oci:{tmp_path / 'layout'}")
    ref = push_model(layout, "lockgate.local/demo", *model, labels=LABELS)
    sign_image(layout, ref, signer)
    attest(layout, ref, signer, SBOM_TYPE, {"bomFormat": "CycloneDX"})

    def signed_in(store: ImageStore, repository: str) -> list[str]:
        here = ref.model_copy(update={"repository": repository})
        report = verify(store, here, signer.own_policy, candidate=None, require_gates=())
        report.require()
        return sorted(s.statement.predicate_type for s in report.statements)

    store = open_store(registry.host)
    promoted = copy_image(layout, ref, store, f"{registry.host}/production/demo", tag="v1")
    assert promoted.digest == ref.digest
    expected = signed_in(layout, ref.repository)
    assert signed_in(store, promoted.repository) == expected
    sign_image(store, promoted, signer)
    assert signed_in(store, promoted.repository) == expected
    back = open_store(f"oci:{tmp_path / 'back'}")
    copy_image(store, promoted, back, "lockgate.local/back")
    assert signed_in(back, "lockgate.local/back") == expected


def test_a_layer_that_was_tampered_with_in_the_registrys_storage_is_refused(
    registry: Registry, model: Model, tmp_path: Path
) -> None:
    store = open_store(registry.host)
    ref = push_model(store, f"{registry.host}/models/demo", *model, labels=LABELS)
    digest = max(read_image_manifest(store, ref).layers, key=lambda d: d.size).digest
    (blob,) = (registry.directory / "data").glob(f"**/blobs/sha256/*/{digest.hex}/data")
    with open(blob, "r+b") as file:
        file.seek(LARGE // 2)
        file.write(b"tampered")
    with pytest.raises(IntegrityError):
        pull_model(store, ref, tmp_path / "room" / "pulled")
    assert list((tmp_path / "room").iterdir()) == []


def test_records_and_documents_are_found_in_the_registry(registry: Registry) -> None:
    key = Digest.of_json(["evaluate", 1])
    records = StepRecords(open_store(registry.host), f"{registry.host}/records")
    assert records.find(key) is None
    digest = records.put_document({"score": 0.5})
    records.record(key, {"evidence": digest})
    again = StepRecords(open_store(registry.host), f"{registry.host}/records")
    found = again.find(key)
    assert found is not None
    assert again.get_document(Digest(found["evidence"])) == {"score": 0.5}


def test_a_registry_that_stops_in_the_middle_of_an_upload_is_reported_and_may_come_back(
    registry: Registry, model: Model
) -> None:
    store = open_store(registry.host)
    seen = threading.Event()

    def stop(done: int, total: int) -> None:
        if done > total // 2 and not seen.is_set():
            seen.set()
            registry.stop()

    repository = f"{registry.host}/models/demo"
    with pytest.raises(RegistryError, match="cannot be reached"):
        push_model(store, repository, *model, labels=LABELS, progress=stop)
    registry.start()
    ref = push_model(store, repository, *model, labels=LABELS)
    assert snapshot_of(store, ref) == model[1]


HTPASSWD = "ada:$2b$04$Jq8VWC8Kauog0VYRBCu6lOhvPcpWYYu8fDrB9bt084oqCvQiMsv6i"


def test_a_registry_that_asks_who_we_are_is_told_as_docker_was(
    make_registry: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = tmp_path / "htpasswd"
    passwords.write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(passwords)}}
    registry = make_registry(auth=auth)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    key = Digest.of_json("step")
    with pytest.raises(RegistryError, match="401") as caught:
        StepRecords(open_store(registry.host), f"{registry.host}/records").record(key, {})
    assert f"docker login {registry.host}" in caught.value.diagnostics()
    encoded = base64.b64encode(b"ada:secret").decode()
    config = {"auths": {registry.host: {"auth": encoded}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    records = StepRecords(open_store(registry.host), f"{registry.host}/records")
    records.record(key, {"v": 1})
    assert records.find(key) == {"v": 1}
