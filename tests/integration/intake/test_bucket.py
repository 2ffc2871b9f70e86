"""A model in an object store, with the vendors' real clients against a server that speaks as much of S3 and of Google's
JSON API as a download needs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from lockgate.adapters import sources
from lockgate.domain.sources import Source, SourceKind
from lockgate.errors import SourceError

WEIGHTS = os.urandom(30_000_000)
PREFIX = "org/name"
WEIGHTS_KEY = f"{PREFIX}/model.safetensors"
PIECE = 8 << 20
KEY = "1234abcd-12ab"
KEY_NAME = f"arn:aws:kms:eu-central-1:111122223333:key/{KEY}"


class Bucket:
    """Objects by key. `after_reading` is called once, when the first bytes of an object were served; `allowed`: bytes of
    weights that are served until every request is answered with an error; `stalled`: then with nothing at all."""

    def __init__(self) -> None:
        self.objects = {
            f"{PREFIX}/config.json": b'{"model_type": "llama"}',
            WEIGHTS_KEY: WEIGHTS,
            f"{PREFIX}/original/consolidated.pth": b"x",
            f"{PREFIX}/empty.txt": b"",
            "org/other/config.json": b"{}",
        }
        self.keys = dict.fromkeys(self.objects, KEY_NAME)
        """The key service's key that each object is encrypted with."""
        self.status: int | None = None
        self.after_reading: Any = None
        self.allowed: int | None = None
        self.stalled = False
        self.begun: list[int] = []
        """Where each range of the weights that was served began."""
        self.over = threading.Event()

    def s3_listing(self, prefix: str) -> bytes:
        parts = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"</ETag></Contents>'
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        ]
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>models</Name>'
            f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(parts)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{''.join(parts)}</ListBucketResult>"
        ).encode()

    def gcs_listing(self, prefix: str) -> bytes:
        shown = [self.gcs_object(key) for key in sorted(self.objects) if key.startswith(prefix)]
        return json.dumps({"kind": "storage#objects", "items": shown}).encode()

    def gcs_object(self, key: str) -> dict[str, str]:
        data = self.objects[key]
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        told = {"kmsKeyName": f"{self.keys[key]}/cryptoKeyVersions/7"} if key in self.keys else {}
        return {
            "kind": "storage#object", "bucket": "models", "name": key, "size": str(len(data)),
            "generation": str(int.from_bytes(md5[:6], "big")), "etag": md5.hex(),
            "md5Hash": base64.b64encode(md5).decode(), **told,
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        path = unquote(asked.path)
        if self.bucket.status is not None:
            self._send(self.bucket.status, b"<Error><Code>AccessDenied</Code></Error>")
        elif path == "/storage/v1/b/models/o":
            listing = self.bucket.gcs_listing(query.get("prefix", ""))
            self._send(200, listing, kind="application/json")
        elif path.strip("/") == "models":
            listing = self.bucket.s3_listing(query.get("prefix", ""))
            self._send(200, listing, kind="application/xml")
        elif path.startswith("/storage/v1/b/models/o/"):
            told = self.bucket.gcs_object(path.removeprefix("/storage/v1/b/models/o/"))
            self._send(200, json.dumps(told).encode(), kind="application/json")
        else:
            key = path.removeprefix("/download/storage/v1/b/models/o/").removeprefix("/models/")
            self._object(key)

    def _object(self, key: str) -> None:
        if key not in self.bucket.objects:
            return self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        data, status, begin = self.bucket.objects[key], 200, "0"
        if wanted := self.headers.get("Range"):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            data, status = data[int(begin) : int(end) + 1 if end else None], 206
        if key == WEIGHTS_KEY and self.command == "GET":
            if self.bucket.allowed is not None and int(begin) >= self.bucket.allowed:
                if self.bucket.stalled:
                    self.bucket.over.wait(60)
                return self._send(400, b"<Error><Code>InvalidRequest</Code></Error>")
            self.bucket.begun.append(int(begin))
        self._send(status, data, key=self.bucket.keys.get(key))
        if self.command == "GET" and self.bucket.after_reading:
            change, self.bucket.after_reading = self.bucket.after_reading, None
            change()
        return None

    def _send(
        self, status: int, data: bytes, kind: str = "binary/octet-stream", key: str | None = None
    ) -> None:
        self.send_response(status)
        if key is not None:
            self.send_header("x-amz-server-side-encryption", "aws:kms")
            self.send_header("x-amz-server-side-encryption-aws-kms-key-id", key)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    made = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": made}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "STORAGE_EMULATOR_HOST": address,
        "NO_GCE_CHECK": "true",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        yield made
    finally:
        made.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(params=["s3", "gs"])
def source(request: pytest.FixtureRequest) -> Source:
    return Source.parse(f"{request.param}://models/{PREFIX}")


@pytest.mark.usefixtures("bucket")
def test_a_prefix_becomes_a_revision_and_its_objects_arrive_under_their_digests(
    source: Source, tmp_path: Path
) -> None:
    source = Source.parse(f"{source}?deny=original/*")
    revision = sources.resolve(source)
    assert revision.repo == "name"
    snapshot = sources.fetch(source, revision, tmp_path / "s")
    assert [f.path for f in snapshot.files] == ["config.json", "empty.txt", "model.safetensors"]
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == WEIGHTS
    assert sources.read_snapshot(tmp_path / "s") == snapshot
    assert sorted(os.listdir(tmp_path)) == ["s", "s.snapshot.json"]


def test_a_prefix_that_somebody_writes_to_is_not_taken(
    bucket: Bucket, source: Source, tmp_path: Path
) -> None:
    revision = sources.resolve(source)
    bucket.objects["org/name/config.json"] = b'{"model_type": "other"}'
    with pytest.raises(SourceError, match="changed since"):
        sources.fetch(source, revision, tmp_path / "s")
    revision = sources.resolve(source)

    def change() -> None:
        bucket.objects["org/name/more.json"] = b"{}"

    bucket.after_reading = change
    with pytest.raises(SourceError, match="changed since"):
        sources.fetch(source, revision, tmp_path / "s")
    assert not any(tmp_path.iterdir())


FETCH = """
import sys
from pathlib import Path
from lockgate.adapters import sources
from lockgate.domain.sources import Source
source = Source.parse(sys.argv[1])
sources.fetch(source, sources.resolve(source), Path(sys.argv[2]))
"""


def test_a_download_that_was_killed_is_continued_within_the_file(
    bucket: Bucket, source: Source, tmp_path: Path
) -> None:
    bucket.allowed, bucket.stalled = 2 * PIECE, True
    process = subprocess.Popen([sys.executable, "-c", FETCH, str(source), str(tmp_path / "s")])
    try:
        while not any(p.read_bytes().count(b"\n") == 2 for p in tmp_path.rglob("*.pieces")):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    bucket.allowed, bucket.stalled = None, False
    bucket.begun.clear()
    snapshot = sources.fetch(source, sources.resolve(source), tmp_path / "s")
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == WEIGHTS
    assert sources.read_snapshot(tmp_path / "s") == snapshot
    assert bucket.begun == [2 * PIECE, 3 * PIECE]


@pytest.mark.parametrize("damage", ["first piece", "second piece", "journal", "another version"])
def test_only_what_is_still_as_it_arrived_is_kept_of_a_download_that_broke_off(
    damage: str, bucket: Bucket, tmp_path: Path
) -> None:
    source = Source.parse(f"s3://models/{PREFIX}?allow=*.safetensors")
    bucket.allowed = 2 * PIECE
    with pytest.raises(SourceError, match="object store failed"):
        sources.fetch(source, sources.resolve(source), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    (journal,) = tmp_path.rglob("*.pieces")
    with journal.with_suffix("").open("r+b") as file:
        assert file.seek(0, os.SEEK_END) == 2 * PIECE
        if damage.endswith("piece"):
            file.seek(7 if damage.startswith("first") else PIECE + 7)
            file.write(b"something else")
    if damage == "journal":
        journal.write_bytes(journal.read_bytes()[:-3])
    weights = WEIGHTS[::-1] if damage == "another version" else WEIGHTS
    bucket.objects[WEIGHTS_KEY], bucket.allowed = weights, None
    bucket.begun.clear()
    snapshot = sources.fetch(source, sources.resolve(source), tmp_path / "s")
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == weights
    assert sources.read_snapshot(tmp_path / "s") == snapshot
    begins_anew = damage in ("first piece", "another version")
    assert bucket.begun[0] == (0 if begins_anew else PIECE)


def test_objects_that_are_not_encrypted_with_the_key_that_is_named_are_refused_unread(
    bucket: Bucket, source: Source, tmp_path: Path
) -> None:
    # A short id is the last part of the name at Amazon, and nothing at Google, where versions follow.
    for key in (KEY_NAME, KEY)[: 2 if source.kind is SourceKind.S3 else 1]:
        asked = Source.parse(f"{source}?key={key}&allow=*.json")
        assert sources.resolve(asked) == sources.resolve(Source.parse(f"{source}?allow=*.json"))
        assert Source.parse(str(asked)) == asked
    for key in ("4321", KEY[:-1], KEY_NAME[:-1], KEY_NAME.rpartition("/")[0]):
        with pytest.raises(SourceError, match="is encrypted with arn"):
            sources.resolve(Source.parse(f"{source}?key={key}"))
    asked = Source.parse(f"{source}?key={KEY_NAME}")
    revision = sources.resolve(asked)
    del bucket.keys[WEIGHTS_KEY]
    with pytest.raises(SourceError, match=r"model\.safetensors is encrypted with no key"):
        sources.fetch(asked, revision, tmp_path / "s")
    assert bucket.begun == []
    assert not any(tmp_path.iterdir())


def test_what_is_not_there_or_closed_is_told_so(bucket: Bucket, source: Source) -> None:
    with pytest.raises(SourceError, match="no objects"):
        sources.resolve(source.model_copy(update={"location": "models/org/nothing"}))
    bucket.status = 403
    with pytest.raises(SourceError, match=r"access is denied|object store failed"):
        sources.resolve(source)


@pytest.mark.parametrize(
    "text",
    [
        "s3://models/m?key=",
        "s3://models/m?key=a&key=b",
        "s3://models/m?key=*",
        "hf://a/b?key=a",
        "dir:m?key=a",
    ],
)
def test_a_key_is_one_of_an_object_store(text: str) -> None:
    with pytest.raises(ValueError, match="key"):
        Source.parse(text)


@pytest.mark.parametrize("text", ["s3://models", "s3://", "gs://Models/x", "s3://models//x"])
def test_a_bucket_without_a_prefix_is_no_source(text: str) -> None:
    with pytest.raises(ValueError, match="bucket source reads"):
        Source.parse(text)
