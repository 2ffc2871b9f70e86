"""A registry that answers anything: headers, addresses, tokens and lists of any form are read or refused, in bounded memory."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.adapters.oci import credentials
from lockgate.adapters.oci.credentials import Credentials
from lockgate.adapters.oci.registry import RegistryStore
from lockgate.adapters.oci.transport import MAX_ANSWER, Transport
from lockgate.domain.digests import Digest
from lockgate.domain.stores import IMAGE_MANIFEST
from lockgate.errors import LockgateError, RegistryError
from tests.amounts import examples

HOST = "registry.example"
REPOSITORY = f"{HOST}/models/demo"
BODY = bytes(range(30, 60))
DIGEST = Digest.of_bytes(BODY)
_ADDRESSES = [
    "http://[", "https://[::1", "//", "", "/v2/x", "ftp://registry.example/", "https://registry.example:99999/",
    "https://x\x00y/", f"https://{HOST}/v2/", "http://\udcff/", "javascript:1", "?", "https://é.example/u",
]  # fmt: skip
_HEADERS = {
    "Location": st.sampled_from(_ADDRESSES),
    "Link": st.sampled_from([f'<{address}>; rel="next"' for address in _ADDRESSES]),
    "Range": st.sampled_from(["0-5", "bytes=0-9", "0-" + "9" * 5000, "0-٣", "5-", "x"]),
    "Content-Length": st.sampled_from(["5", "-5", "9" * 5000, "x", ""]),
    "Content-Encoding": st.sampled_from(["gzip", "deflate", "gzip, gzip", "br", "zstd", "x", ""]),
    "Content-Type": st.sampled_from([IMAGE_MANIFEST, "", ";", "text/plain; charset=nonsense"]),
    "Docker-Content-Digest": st.sampled_from([DIGEST, "x"]),
    "WWW-Authenticate": st.sampled_from(
        [f'Bearer realm="{address}",service="x"' for address in _ADDRESSES] + ["Basic", "Bearer", "é"]
    ),
}  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("\u00e9\n"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tags", "token", "access_token", "errors", "code", "message", "detail",
                             "manifests", "digest", "size", "mediaType", "annotations"]),
            inner, max_size=4,
        )
    ),
    max_leaves=8,
)  # fmt: skip
_BODIES = (
    _VALUES.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([BODY, b"", b"[" * 100_000, b"\xff\xfe", b'{"token": "t"}'])
)  # fmt: skip
_ANSWERS = st.tuples(
    st.sampled_from([200, 201, 202, 204, 206, 301, 307, 400, 401, 403, 404, 416, 429, 500]),
    st.fixed_dictionaries({}, optional=_HEADERS),
    _BODIES,
)


class _Raw(httpx.SyncByteStream):
    """A body as it is sent, whatever the headers say of it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield self._body


def _answer(status: int, headers: dict[str, str], body: bytes) -> httpx.Response:
    raw = [(k.encode(), v.encode("utf-8", "surrogateescape")) for k, v in headers.items()]
    return httpx.Response(status, headers=raw, stream=_Raw(body))


def _store(handler: Callable[[httpx.Request], httpx.Response]) -> RegistryStore:
    return RegistryStore(
        Transport(
            HOST,
            find_credentials=lambda _: Credentials("ada", "secret"),
            pause=lambda _: None,
            transport=httpx.MockTransport(handler),
        )
    )


def _calls(store: RegistryStore) -> list[Callable[[], Any]]:
    return [
        lambda: store.blob_size(REPOSITORY, DIGEST),
        lambda: list(store.read_blob(REPOSITORY, DIGEST)),
        lambda: list(store.read_blob(REPOSITORY, DIGEST, [BODY[:9]])),
        lambda: store.put_blob(REPOSITORY, None, [BODY], len(BODY)),
        lambda: store.put_blob(REPOSITORY, None, lambda at: iter([BODY[at:]]), len(BODY)),
        lambda: store.mount_blob(REPOSITORY, DIGEST, f"{HOST}/other"),
        lambda: store.get_manifest(REPOSITORY, "tag"),
        lambda: store.get_manifest(REPOSITORY, DIGEST),
        lambda: store.put_manifest(REPOSITORY, b"{}", IMAGE_MANIFEST, "tag"),
        lambda: [tag.startswith("a") for tag in store.tags(REPOSITORY)],
        lambda: [d.annotations.get("x") for d in store.referrers(REPOSITORY, DIGEST)],
    ]


@settings(max_examples=examples(60))
@given(st.lists(_ANSWERS, min_size=1, max_size=4))
def test_answers_of_any_form_are_taken_or_refused(
    answers: list[tuple[int, dict[str, str], bytes]],
) -> None:
    for number in range(len(_calls(_store(lambda _: httpx.Response(200))))):
        asked = iter(range(10**6))
        store = _store(lambda _, asked=asked: _answer(*answers[next(asked) % len(answers)]))
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(LockgateError):
            # That a list of pages without end ends is another test.
            patch.setattr("lockgate.adapters.oci.registry._MAX_PAGES", 5)
            _calls(store)[number]()


def test_a_registry_that_leads_round_in_circles_is_left() -> None:
    store = _store(lambda request: httpx.Response(307, headers={"Location": str(request.url)}))
    for call in _calls(store):
        with pytest.raises(RegistryError):
            call()


def test_a_token_without_end_is_not_read_into_memory() -> None:
    class Endless(httpx.SyncByteStream):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for _ in range(4 * (MAX_ANSWER >> 20)):
                yield bytes(1 << 20)
            raise AssertionError("all of it was read")

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.example":
            return httpx.Response(200, stream=Endless())
        realm = 'Bearer realm="https://auth.example/token",service="x"'
        return httpx.Response(401, headers={"WWW-Authenticate": realm})

    with pytest.raises(RegistryError, match="more than"):
        _store(handler).tags(REPOSITORY)


def test_an_answer_that_is_packed_many_times_over_is_refused_unread() -> None:
    bomb = bytes(1 << 20)
    for _ in range(3):
        bomb = gzip.compress(bomb)

    def handler(request: httpx.Request) -> httpx.Response:
        assert set(request.headers["Accept-Encoding"].split(", ")) <= {"gzip", "deflate"}
        return _answer(200, {"Content-Encoding": "gzip, gzip, gzip"}, bomb)

    store = _store(handler)
    with pytest.raises(RegistryError, match="encoding"):
        store.get_manifest(REPOSITORY, "tag")


_LOGIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["YTpi", "é", "a", "YQ", "\x00"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["auths", "credHelpers", "credsStore", HOST, "auth", "identitytoken",
                             "username", "password"]),
            inner, max_size=4,
        )
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=examples(150))
@given(_LOGIN | st.dictionaries(st.just("auths"), st.dictionaries(st.just(HOST), _LOGIN)))
def test_a_login_file_of_any_form_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, config: Any
) -> None:
    place = tmp_path_factory.mktemp("login")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XDG_RUNTIME_DIR", raising=False)
        patch.setenv("DOCKER_CONFIG", str(place))
        patch.setenv("REGISTRY_AUTH_FILE", str(place / "none.json"))
        # No helper is there to be asked.
        patch.setenv("PATH", str(place))
        Path(place, "config.json").write_text(json.dumps(config))
        try:
            found = credentials.find(HOST)
        except RegistryError:
            return
        assert found is None or found.basic.startswith("Basic ")
