"""A model out of an image that others made: its files arrive whole under their digests, or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.adapters import sources
from lockgate.adapters.oci import ImageStore, open_store
from lockgate.adapters.sources import pull_plain
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import Source
from lockgate.domain.stores import IMAGE_INDEX, IMAGE_MANIFEST
from lockgate.errors import LockgateError, RegistryError, SourceError
from tests.amounts import examples

REPOSITORY = "lockgate.local/their/model"
TAR = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
PACK = "application/vnd.cncf.model"
WEIGHTS = os.urandom(2_500_000)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return open_store(f"oci:{tmp_path / 'store'}")


def _tar(files: dict[str, bytes], **changes: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for key, value in changes.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _image(
    store: ImageStore,
    *layers: bytes | tuple[str, bytes, dict[str, str]],
    config_type: str = CONFIG,
) -> ImageRef:
    def blob(kind: str, data: bytes, notes: dict[str, str] | None = None) -> dict[str, Any]:
        digest = store.put_blob(REPOSITORY, None, [data], len(data))
        return {"mediaType": kind, "digest": digest, "size": len(data), "annotations": notes or {}}

    listed = [blob(TAR, item) if isinstance(item, bytes) else blob(*item) for item in layers]
    manifest = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST,
                "config": blob(config_type, b"{}"), "layers": listed}  # fmt: skip
    digest = store.put_manifest(REPOSITORY, json.dumps(manifest).encode(), IMAGE_MANIFEST)
    return ImageRef(repository=REPOSITORY, digest=digest)


def test_files_below_models_arrive_and_nothing_else_of_the_image(
    store: ImageStore, tmp_path: Path
) -> None:
    image = _image(
        store,
        _tar({"etc/passwd": b"root", "models/config.json": b"old", "models/m.safetensors": WEIGHTS}),
        (f"{TAR}+gzip", gzip.compress(_tar({"./models/sub/a.json": b"{}", "/models/config.json": b"new"})), {}),
    )  # fmt: skip
    target = tmp_path / "out" / "s"
    source = Source.parse(f"oci://{image}")
    options = sources.FetchOptions(pull=lambda ref, place: pull_plain(store, ref, place))
    revision = sources.resolve(source)
    snapshot = sources.fetch(source, revision, target, options=options)
    assert [f.path for f in snapshot.files] == ["config.json", "m.safetensors", "sub/a.json"]
    assert (target / "config.json").read_bytes() == b"new"
    assert (target / "m.safetensors").read_bytes() == WEIGHTS
    assert sources.read_snapshot(target) == snapshot
    assert sorted(os.listdir(tmp_path / "out")) == ["s", "s.snapshot.json"]
    store_is_gone = sources.FetchOptions(pull=lambda ref, place: pytest.fail("pulled again"))
    assert sources.fetch(source, revision, target, options=store_is_gone) == snapshot


def test_a_modelpack_gives_its_raw_files_under_their_names(
    store: ImageStore, tmp_path: Path
) -> None:
    name = {"org.cncf.model.filepath": "sub/m.safetensors"}
    image = _image(
        store,
        (f"{PACK}.weight.v1.raw", WEIGHTS, name),
        (f"{PACK}.weight.config.v1.tar", _tar({"config.json": b"{}"}), {}),
        config_type=f"{PACK}.config.v1+json",
    )
    snapshot = pull_plain(store, image, tmp_path / "s")
    assert [f.path for f in snapshot.files] == ["config.json", "sub/m.safetensors"]
    assert (
        sources.read_snapshot(tmp_path / "s")
        == snapshot
        == pull_plain(store, image, tmp_path / "s")
    )
    (tmp_path / "s" / "config.json").write_text("{ }")
    with pytest.raises(SourceError, match="something else"):
        pull_plain(store, image, tmp_path / "s")


def test_an_index_gives_the_image_for_this_kind_of_machine(
    store: ImageStore, tmp_path: Path
) -> None:
    parts = []
    for machine in ("amd64", "arm64"):
        image = _image(store, _tar({"models/config.json": machine.encode()}))
        body, _ = store.get_manifest(REPOSITORY, image.digest)
        parts.append({"mediaType": IMAGE_MANIFEST, "digest": image.digest, "size": len(body),
                      "platform": {"os": "linux", "architecture": machine}})  # fmt: skip
    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": parts}
    digest = store.put_manifest(REPOSITORY, json.dumps(index).encode(), IMAGE_INDEX)
    pull_plain(store, ImageRef(repository=REPOSITORY, digest=digest), tmp_path / "s")
    assert (tmp_path / "s" / "config.json").read_bytes() == b"amd64"


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (_tar({"etc/passwd": b"root"}), "no files under /models/"),
        (_tar({"models/../../escape": b"x"}), "name cannot be used"),
        (_tar({"models/a\\b": b"x"}), "name cannot be used"),
        (_tar({"models/link": b""}, type=tarfile.SYMTYPE, linkname="/etc"), "no regular file"),
        (_tar({"models/link": b""}, type=tarfile.LNKTYPE, linkname="models/x"), "no regular file"),
        (_tar({"models/null": b""}, type=tarfile.CHRTYPE), "no regular file"),
        (_tar({"models/.wh.config.json": b""}), "deletes files"),
        (_tar({"models/a": b"x", "models/a/b": b"x"}), "both as a file and as a directory"),
        (_tar({"models/a": b"x" * 5000})[:3000], "breaks off|no tar archive"),
        (b"nothing of a tar" * 100, "no tar archive"),
        ((f"{TAR}+gzip", b"nothing of a gzip", {}), "not gzip"),
        ((f"{TAR}+gzip", gzip.compress(_tar({"models/a": b"x" * 99}))[:-20], {}), "breaks off"),
        ((f"{TAR}+zstd", b"", {}), "compressed with zstd"),
        (("application/vnd.docker.image.rootfs.diff.tar.zstd", b"", {}), "compressed with zstd"),
        ((f"{PACK}.weight.v1.raw", b"x", {}), "not read here"),
    ],
)
def test_what_is_no_model_or_more_than_files_is_refused_and_leaves_nothing(
    layer: Any, said: str, store: ImageStore, tmp_path: Path
) -> None:
    image = _image(store, layer)
    with pytest.raises(SourceError, match=said):
        pull_plain(store, image, tmp_path / "out" / "s")
    assert not (tmp_path / "escape").exists()
    assert list((tmp_path / "out").glob("*")) == []


def test_a_small_layer_that_grows_beyond_the_disk_is_refused(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    image = _image(store, (f"{TAR}+gzip", gzip.compress(_tar({"models/a": bytes(20_000_000)})), {}))
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage)
    with pytest.raises(LockgateError, match="no space left"):
        pull_plain(store, image, tmp_path / "out" / "s")
    assert os.listdir(tmp_path / "out") == []


class _BreakingOff:
    """A store that breaks off after so many bytes, and says what it was asked to send."""

    def __init__(self, store: ImageStore, after: int | None) -> None:
        self._store, self.after, self.sent = store, after, 0
        self.location = store.location

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        return self._store.get_manifest(repository, reference)

    def read_blob(
        self, repository: str, digest: Digest, held: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        there = 0

        def counted() -> Iterator[bytes]:
            nonlocal there
            for chunk in held:
                there += len(chunk)
                yield chunk

        given = 0
        for chunk in self._store.read_blob(repository, digest, counted()):
            given += len(chunk)
            if given > there:
                if self.after is not None and self.sent + len(chunk) > self.after:
                    yield chunk[: self.after - self.sent]
                    raise RegistryError("the connection broke")
                self.sent += len(chunk)
            yield chunk


def _two_layers(store: ImageStore, kind: str) -> tuple[ImageRef, int]:
    """An image with a large layer of each kind, and how many bytes there are to transfer."""
    first = os.urandom(5 << 20)
    if kind == "raw":
        layers: list[Any] = [
            (f"{PACK}.weight.v1.raw", body, {"org.cncf.model.filepath": f"{name}.safetensors"})
            for name, body in (("first", first), ("m", WEIGHTS))
        ]
        return _image(store, *layers, config_type=f"{PACK}.config.v1+json"), len(first + WEIGHTS)
    packed = gzip.compress if kind == "tar+gzip" else bytes
    layers = [
        (f"application/vnd.oci.image.layer.v1.{kind}", packed(_tar({f"models/{name}": body})), {})
        for name, body in (("first.safetensors", first), ("m.safetensors", WEIGHTS))
    ]
    return _image(store, *layers), sum(len(layer[1]) for layer in layers)


@pytest.mark.parametrize("kind", ["tar", "tar+gzip", "raw"])
def test_a_pull_that_breaks_off_within_a_file_goes_on_where_it_was(
    kind: str, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockgate.adapters.sources.image.SPOOLED", 1 << 20)
    image, size = _two_layers(store, kind)
    # Two breaks: one in the first layer, one in the second.
    for after in (4 << 20, 2 << 20, None):
        breaking = _BreakingOff(store, after)
        place: Any = breaking
        if after is not None:
            with pytest.raises(RegistryError, match="broke"):
                pull_plain(place, image, tmp_path / "out" / "s")
            assert not (tmp_path / "out" / "s").exists()
        else:
            snapshot = pull_plain(place, image, tmp_path / "out" / "s")
            # At most what did not fill a piece is asked for again.
            assert breaking.sent <= size - (6 << 20) + (2 << 20)
    assert (tmp_path / "out" / "s" / "m.safetensors").read_bytes() == WEIGHTS
    assert sources.read_snapshot(tmp_path / "out" / "s") == snapshot
    assert os.listdir(tmp_path / "out") == ["s"]


@pytest.mark.parametrize("kind", ["tar", "raw"])
def test_what_was_damaged_after_it_arrived_is_brought_again(
    kind: str, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockgate.adapters.sources.image.SPOOLED", 1 << 20)
    image, _ = _two_layers(store, kind)
    for pattern in ("layer-*", "files/first.safetensors"):
        breaking: Any = _BreakingOff(store, 6 << 20)
        with pytest.raises(RegistryError, match="broke"):
            pull_plain(breaking, image, tmp_path / "out" / "s")
        (damaged,) = (tmp_path / "out").glob(f".s.incoming-*/{pattern}")
        with damaged.open("r+b") as file:
            file.write(b"something else")
        snapshot = pull_plain(store, image, tmp_path / "out" / "s")
        assert (tmp_path / "out" / "s" / "m.safetensors").read_bytes() == WEIGHTS
        assert sources.read_snapshot(tmp_path / "out" / "s") == snapshot
        shutil.rmtree(tmp_path / "out")


class _OneLayer:
    """As much of a store as a pull asks: one image of one layer, in pieces."""

    location = "test"

    def __init__(self, kind: str, data: bytes) -> None:
        self._data = data
        layer = {"mediaType": kind, "digest": Digest.of_bytes(data), "size": len(data)}
        self.body = json.dumps({"config": {}, "layers": [layer]}).encode()

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        return self.body, IMAGE_MANIFEST

    def read_blob(
        self, repository: str, digest: Digest, held: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        assert not list(held)
        yield from (self._data[at : at + 100] for at in range(0, len(self._data), 100))


_LONG = "models/" + "é" * 60 + "/b.bin"
_SOUND = _tar({"models/a.json": b"{}", _LONG: b"x" * 700, "models/c.json": b"{}"})


@settings(max_examples=examples(150))
@given(
    st.sampled_from([TAR, f"{TAR}+gzip"]),
    st.lists(st.tuples(st.integers(0, 5200), st.binary(max_size=9)), max_size=4),
    st.integers(0, 6500),
)
def test_a_layer_with_anything_overwritten_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    changes: list[tuple[int, bytes]],
    length: int,
) -> None:
    data = bytearray(_SOUND if kind == TAR else gzip.compress(_SOUND))
    whole = len(data)
    for at, piece in changes:
        data[at % whole : at % whole + len(piece)] = piece
    store: Any = _OneLayer(kind, bytes(data[:length]))
    image = ImageRef(repository=REPOSITORY, digest=Digest.of_bytes(store.body))
    place = tmp_path_factory.mktemp("fuzz")
    try:
        snapshot = pull_plain(store, image, place / "s")
    except LockgateError:
        assert os.listdir(place) == []
    else:
        assert sources.read_snapshot(place / "s") == snapshot
