"""The registry client's manners: who gets credentials, what is tried again, what is believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from lockgate.adapters.oci import credentials
from lockgate.adapters.oci.artifacts import read_json
from lockgate.adapters.oci.copying import copy_image
from lockgate.adapters.oci.credentials import Credentials
from lockgate.adapters.oci.images import image_labels, small_blob
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.adapters.oci.registry import RegistryStore
from lockgate.adapters.oci.transport import Transport
from lockgate.adapters.sources import pull_plain
from lockgate.domain.digests import Digest, canonical_json
from lockgate.domain.images import ImageRef
from lockgate.domain.model_image import image_manifest
from lockgate.domain.stores import (
    EMPTY_JSON,
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_LAYER,
    IMAGE_MANIFEST,
    Descriptor,
)
from lockgate.errors import IntegrityError, RegistryError

HOST = "registry.example"
REPOSITORY = f"{HOST}/models/demo"
BODY = bytes(range(256)) * 40
DIGEST = Digest.of_bytes(BODY)

Handler = Callable[[httpx.Request], httpx.Response]


class Registry:
    """A registry that answers as a test tells it, and keeps what it was asked."""

    def __init__(self, handler: Handler, known: Credentials | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

        def answer(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return handler(request)

        transport = Transport(
            HOST,
            find_credentials=lambda _: known,
            pause=self.pauses.append,
            transport=httpx.MockTransport(answer),
        )
        self.store = RegistryStore(transport)


def challenge(realm: str) -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="{realm}",service="{HOST}",scope="x"'}


def test_a_token_is_asked_for_with_the_users_name_and_sent_to_the_registry_only() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.example":
            assert request.headers["Authorization"] == Credentials("ada", "secret").basic
            assert request.url.params["scope"] == "repository:models/demo:pull"
            return httpx.Response(200, json={"token": "t0ken"})
        if request.url.host == "storage.example":
            assert "Authorization" not in request.headers
            return httpx.Response(200, content=BODY)
        if request.headers.get("Authorization") != "Bearer t0ken":
            return httpx.Response(401, headers=challenge("https://auth.example/token"))
        return httpx.Response(307, headers={"Location": "https://storage.example/blob"})

    registry = Registry(handler, Credentials("ada", "secret"))
    for _ in range(2):
        assert b"".join(registry.store.read_blob(REPOSITORY, DIGEST)) == BODY
    assert [r.url.host for r in registry.requests].count("auth.example") == 1


def test_an_upload_to_the_registrys_object_storage_carries_no_credentials() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "storage.example":
            assert "Authorization" not in request.headers
            return httpx.Response(201 if request.method == "PUT" else 202)
        if "Authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if request.method == "HEAD":
            return httpx.Response(404)
        return httpx.Response(202, headers={"Location": "https://storage.example/upload"})

    registry = Registry(handler, Credentials("ada", "secret"))
    assert registry.store.put_blob(REPOSITORY, DIGEST, [BODY], len(BODY)) == DIGEST
    assert registry.requests[-1].url.host == "storage.example"


def test_credentials_are_not_sent_without_encryption_because_a_registry_says_so() -> None:
    registry = Registry(
        lambda _: httpx.Response(401, headers=challenge("http://auth.example/token")),
        Credentials("ada", "secret"),
    )
    with pytest.raises(RegistryError, match="without TLS"):
        registry.store.has_blob(REPOSITORY, DIGEST)
    assert {r.url.host for r in registry.requests} == {HOST}


def test_nothing_is_sent_or_read_without_encryption_because_a_registry_leads_there() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.scheme == "https"
        if request.method == "HEAD":
            return httpx.Response(404)
        led = {"Location": "http://storage.example/x"}
        return httpx.Response(202 if request.method == "POST" else 307, headers=led)

    registry = Registry(handler)
    with pytest.raises(RegistryError, match=r"leads to storage\.example, without TLS"):
        registry.store.put_blob(REPOSITORY, DIGEST, [BODY], len(BODY))
    with pytest.raises(RegistryError, match=r"leads to storage\.example, without TLS"):
        list(registry.store.read_blob(REPOSITORY, DIGEST))


def test_a_registry_that_refuses_us_is_named_with_the_way_to_log_in() -> None:
    registry = Registry(lambda _: httpx.Response(403, json={"errors": [{"code": "DENIED"}]}))
    with pytest.raises(RegistryError, match="403") as caught:
        registry.store.get_manifest(REPOSITORY, "latest")
    assert f"docker login {HOST}" in caught.value.diagnostics()
    assert "DENIED" in caught.value.message
    assert len(registry.requests) == 1


@pytest.mark.parametrize("status", [None, 503])
def test_an_outage_is_reported_after_a_few_tries(status: int | None) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if status is None:
            raise httpx.ConnectError("connection refused", request=request)
        return httpx.Response(status)

    registry = Registry(handler)
    with pytest.raises(RegistryError, match=HOST):
        registry.store.resolve(REPOSITORY, "latest")
    assert len(registry.requests) == 4
    assert sum(registry.pauses) < 10


def test_a_short_outage_is_outlived() -> None:
    answers = [httpx.Response(502), httpx.Response(429), httpx.Response(200)]
    registry = Registry(lambda _: answers.pop(0))
    assert registry.store.has_blob(REPOSITORY, DIGEST)


class BrokenOff(httpx.SyncByteStream):
    def __init__(self, part: bytes) -> None:
        self.part = part

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield self.part
        raise httpx.ReadError("connection reset")


@pytest.mark.parametrize("ranges", [True, False], ids=["range honoured", "range ignored"])
def test_a_download_that_breaks_off_goes_on_where_it_was(ranges: bool) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("Range")
        start = int(asked.removeprefix("bytes=")[:-1]) if asked else 0
        if start == 0 and len(registry.requests) == 1:
            return httpx.Response(200, stream=BrokenOff(BODY[:5000]))
        if ranges:
            return httpx.Response(206, content=BODY[start:])
        return httpx.Response(200, content=BODY)

    registry = Registry(handler)
    assert b"".join(registry.store.read_blob(REPOSITORY, DIGEST)) == BODY
    assert registry.requests[1].headers["Range"] == "bytes=5000-"


@pytest.mark.parametrize("held", [BODY[:7000], BODY], ids=["a part", "all of it"])
def test_what_a_caller_has_of_a_blob_is_hashed_and_not_transferred(held: bytes) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        start = int(request.headers["Range"].removeprefix("bytes=")[:-1])
        assert start == len(held)
        if start == len(BODY):
            return httpx.Response(416)
        return httpx.Response(206, content=BODY[start:])

    store = Registry(handler).store
    assert b"".join(store.read_blob(REPOSITORY, DIGEST, [held])) == BODY
    with pytest.raises(IntegrityError):
        list(store.read_blob(REPOSITORY, DIGEST, [b"x" + held[1:]]))


def test_plain_http_is_spoken_on_the_loopback_and_elsewhere_only_when_asked_for() -> None:
    def scheme(host: str, *, plain_http: bool = False) -> str:
        return Transport(host, plain_http=plain_http).url("/v2/").partition(":")[0]

    assert [scheme(host) for host in ("127.0.0.1:5000", "localhost:5000", "[::1]:5000")] == [
        "http", "http", "http",
    ]  # fmt: skip
    for host in ("registry.example", "10.0.0.7:5000", "localhost.example", "127.example:80"):
        assert scheme(host) == "https"
        assert scheme(host, plain_http=True) == "http"


def test_a_registry_is_not_believed() -> None:
    registry = Registry(lambda _: httpx.Response(200, content=b'{"other": "bytes"}'))
    with pytest.raises(IntegrityError):
        list(registry.store.read_blob(REPOSITORY, DIGEST))
    with pytest.raises(IntegrityError):
        registry.store.get_manifest(REPOSITORY, DIGEST)


class Endless(httpx.SyncByteStream):
    """Goes on for as long as somebody reads."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        for _ in range(200):
            yield bytes(1 << 20)
        raise AssertionError("200 MiB were read")


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_without_end_is_not_read_into_memory(status: int, tmp_path: Path) -> None:
    config = Descriptor(IMAGE_CONFIG, DIGEST, 100)
    layer = Descriptor(IMAGE_LAYER, DIGEST, 5000)
    body = image_manifest(b"x" * 100, [layer])
    ref = ImageRef(repository=REPOSITORY, digest=Digest.of_bytes(body))

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(200, headers={"Content-Length": "100"})
        if request.url.path.endswith(str(ref.digest)) and status == 200:
            return httpx.Response(200, content=body)
        return httpx.Response(status, stream=Endless())

    store = Registry(handler).store
    for read in (
        lambda: store.get_manifest(REPOSITORY, "tag"),
        lambda: store.tags(REPOSITORY),
        lambda: store.referrers(REPOSITORY, DIGEST),
        lambda: read_json(store, REPOSITORY, DIGEST),
        lambda: small_blob(store, REPOSITORY, config),
        lambda: image_labels(store, ref),
        lambda: pull_plain(store, ref, tmp_path / "pulled"),
        lambda: copy_image(store, ref, LayoutStore(tmp_path / "copy"), REPOSITORY),
    ):
        with pytest.raises((RegistryError, IntegrityError)):
            read()


def test_a_list_whose_pages_lead_on_for_ever_ends() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        following = {"Link": f'<{request.url.path}?n=1000>; rel="next"'}
        return httpx.Response(200, json={"tags": ["a"]}, headers=following)

    with pytest.raises(RegistryError, match="pages"):
        Registry(handler).store.tags(REPOSITORY)


def test_another_registrys_repository_is_not_looked_up_here() -> None:
    registry = Registry(lambda _: httpx.Response(200))
    with pytest.raises(RegistryError, match=r"other\.example/models/demo is not in the registry"):
        registry.store.has_blob("other.example/models/demo", DIGEST)
    assert registry.requests == []


SUBJECT = Digest.of_bytes(b"image")
NOTES = [
    Descriptor(IMAGE_MANIFEST, Digest.of_json(n), 1, artifact_type=f"application/x-{n % 2}")
    for n in range(3)
]


def index(*entries: Descriptor) -> bytes:
    return canonical_json({"schemaVersion": 2, "manifests": [e.to_data() for e in entries]})


def test_all_pages_of_the_referrers_are_read_and_sorted_out_by_kind() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == f"/v2/models/demo/referrers/{SUBJECT}"
        if request.url.params.get("page") == "2":
            return httpx.Response(200, content=index(NOTES[2]))
        link = {"Link": f'<{request.url.path}?page=2>; rel="next"'}
        return httpx.Response(200, content=index(*NOTES[:2]), headers=link)

    registry = Registry(handler)
    assert registry.store.referrers(REPOSITORY, SUBJECT) == NOTES
    assert registry.store.referrers(REPOSITORY, SUBJECT, "application/x-0") == NOTES[::2]


def test_a_registry_that_keeps_referrers_itself_gets_no_index_from_us() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.method == "PUT"
        return httpx.Response(201, headers={"OCI-Subject": SUBJECT})

    body = canonical_json(
        {
            "schemaVersion": 2,
            "config": Descriptor(EMPTY_JSON, Digest.of_bytes(b"{}"), 2).to_data(),
            "layers": [],
            "subject": Descriptor(IMAGE_MANIFEST, SUBJECT, 5).to_data(),
        }
    )
    registry = Registry(handler)
    assert registry.store.put_manifest(REPOSITORY, body, IMAGE_MANIFEST) == Digest.of_bytes(body)
    assert len(registry.requests) == 1


def test_where_there_is_no_referrers_api_the_tagged_index_is_added_to() -> None:
    tagged: dict[str, bytes] = {f"sha256-{SUBJECT.hex}": index(NOTES[0])}

    def handler(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if request.method == "PUT":
            tagged[name] = request.read()
            return httpx.Response(201)
        if name in tagged:
            return httpx.Response(200, content=tagged[name], headers={"Content-Type": IMAGE_INDEX})
        return httpx.Response(404)

    body = canonical_json(
        {
            "schemaVersion": 2,
            "artifactType": "application/x-1",
            "config": Descriptor(EMPTY_JSON, Digest.of_bytes(b"{}"), 2).to_data(),
            "layers": [],
            "subject": Descriptor(IMAGE_MANIFEST, SUBJECT, 5).to_data(),
        }
    )
    registry = Registry(handler)
    for _ in range(2):
        digest = registry.store.put_manifest(REPOSITORY, body, IMAGE_MANIFEST)
    found = [d.digest for d in registry.store.referrers(REPOSITORY, SUBJECT)]
    assert found == [NOTES[0].digest, digest]


def test_an_upload_whose_source_turns_out_wrong_is_given_up_not_tried_again() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": "/v2/models/demo/blobs/uploads/1"})
        if request.method == "HEAD":
            return httpx.Response(404)
        return httpx.Response(204)

    registry = Registry(handler)
    with pytest.raises(IntegrityError, match="ends after"):
        registry.store.put_blob(REPOSITORY, DIGEST, lambda _: iter([BODY[:99]]), len(BODY))
    assert [r.method for r in registry.requests] == ["HEAD", "POST", "DELETE"]


class Uploads:
    """The upload half of a registry that keeps what arrived of a request that broke off, as `breaks` says how much."""

    def __init__(self, breaks: list[int], resumable: bool = True, wall: int | None = None) -> None:
        """`wall`: nothing that begins at this byte or later ever arrives."""
        self.breaks, self.resumable, self.wall = breaks, resumable, wall
        self.kept = b""
        self.committed: bytes | None = None
        self.sent = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        location = {"Location": "/v2/models/demo/blobs/uploads/1?state=x"}
        if request.method == "HEAD":
            return httpx.Response(404 if self.committed is None else 200)
        if request.method == "POST":
            self.kept = b""
            return httpx.Response(202, headers=location)
        if request.method == "GET":
            if not self.resumable:
                return httpx.Response(404)
            held = {"Range": f"0-{max(0, len(self.kept) - 1)}"}
            return httpx.Response(204, headers={**location, **held})
        if request.method == "PATCH":
            start = int(request.headers.get("Content-Range", "0-").partition("-")[0])
            assert start == len(self.kept)
            if self.wall is not None and start >= self.wall:
                raise httpx.WriteError("connection reset", request=request)
            arrived = request.content[: self.breaks[0]] if self.breaks else request.content
            self.sent += len(arrived)
            self.kept += arrived
            if self.breaks:
                self.breaks.pop(0)
                raise httpx.WriteError("connection reset", request=request)
            return httpx.Response(202, headers=location)
        if request.method == "PUT":
            self.committed = self.kept
            return httpx.Response(201)
        return httpx.Response(204)


@pytest.mark.parametrize("resumable", [True, False])
def test_an_upload_that_breaks_off_goes_on_where_the_registry_is(
    monkeypatch: pytest.MonkeyPatch, resumable: bool
) -> None:
    monkeypatch.setattr("lockgate.adapters.oci.uploads.PIECE", 3000)
    uploads = Uploads([5000, 2000, 1], resumable)
    registry = Registry(uploads)
    registry.store.put_blob(REPOSITORY, DIGEST, lambda offset: [BODY[offset:]], len(BODY))
    assert uploads.committed == BODY
    again = 0 if resumable else 7001
    assert uploads.sent == len(BODY) + again


@pytest.mark.parametrize(
    "uploads",
    [Uploads([0] * 99), Uploads([5000], resumable=False, wall=6000), Uploads([5000], wall=6000)],
    ids=["nothing arrives", "begins again", "resumes"],
)
def test_an_upload_that_gets_nowhere_is_given_up(
    monkeypatch: pytest.MonkeyPatch, uploads: Uploads
) -> None:
    monkeypatch.setattr("lockgate.adapters.oci.uploads.PIECE", 3000)
    registry = Registry(uploads)
    with pytest.raises(RegistryError, match="cannot be reached"):
        registry.store.put_blob(REPOSITORY, DIGEST, lambda offset: [BODY[offset:]], len(BODY))
    assert len(registry.requests) < 40


def test_an_upload_from_a_source_that_cannot_be_read_again_is_given_up_at_the_first_break() -> None:
    registry = Registry(Uploads([100]))
    with pytest.raises(RegistryError, match="cannot be reached"):
        registry.store.put_blob(REPOSITORY, None, iter([BODY]), len(BODY))


def write_config(directory: Path, config: object) -> None:
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


def test_logins_are_found_where_docker_keeps_them(docker_config: Path) -> None:
    assert credentials.find(HOST) is None
    encoded = base64.b64encode(b"ada:se:cret").decode()
    write_config(
        docker_config,
        {
            "auths": {
                HOST: {"auth": encoded},
                "token.example": {"identitytoken": "t"},
                "https://old.example": {"username": "u", "password": "p"},
            }
        },
    )
    assert credentials.find(HOST) == Credentials("ada", "se:cret")
    assert credentials.find("token.example") == Credentials(identity_token="t")
    assert credentials.find("old.example") == Credentials("u", "p")
    assert credentials.find("unknown.example") is None
    assert "se:cret" not in repr(credentials.find(HOST))


def test_a_credential_helper_is_asked(docker_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = docker_config / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread host\necho "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"$host\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker_config}:/usr/bin:/bin")
    write_config(docker_config, {"credHelpers": {HOST: "test", "gone.example": "gone"}})
    assert credentials.find(HOST) == Credentials(identity_token=HOST)
    with pytest.raises(RegistryError, match="docker-credential-gone is not installed"):
        credentials.find("gone.example")


def test_an_unreadable_login_file_is_an_error_not_an_anonymous_request(docker_config: Path) -> None:
    (docker_config / "config.json").write_text("{")
    with pytest.raises(RegistryError, match=r"config\.json"):
        credentials.find(HOST)
