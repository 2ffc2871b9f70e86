"""Keys in a service, by securesystemslib's own signers. Its file scheme stands for a service: the same door, no vendor."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from lockgate.adapters.signing import ServiceKeySigner, generate_key
from lockgate.errors import SigningError
from lockgate.settings import Settings
from tasks.workspace import Workspace

World = Any


def test_what_a_service_signed_is_accepted_like_any_signature_of_that_key(
    world: World, tmp_path: Path
) -> None:
    uri = f"file2:{tmp_path / 'release'}"
    world.signer = ServiceKeySigner(uri, (tmp_path / "release.pub").read_text())
    world.release()
    report = world.verify()
    assert report.ok
    assert report.signer == world.signer.name


def test_a_service_that_signs_with_another_key_than_the_policys_is_found_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("release", "other"):
        generate_key(tmp_path / name, tmp_path / f"{name}.pub")
    public = (tmp_path / "release.pub").read_text()
    with pytest.raises(SigningError, match="does not match"):
        ServiceKeySigner(f"file2:{tmp_path / 'other'}", public)
    signer = ServiceKeySigner(f"file2:{tmp_path / 'release'}", public)
    other = ServiceKeySigner(f"file2:{tmp_path / 'other'}", (tmp_path / "other.pub").read_text())
    monkeypatch.setattr(signer, "_service", other._service)
    with pytest.raises(SigningError, match="another key"):
        signer._sign(b"statement")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("awskms:1234", "next: compare LOCKGATE_SIGNING_KEY_URI"),
        ("gcpkms:projects/p/cryptoKeyVersions/1", r"next: install the vendor's library .*gcpkms"),
        ("gpg:1234", "no keys of the scheme"),
        ("file2:/nowhere", "nowhere"),
    ],
)
def test_a_service_that_cannot_be_used_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, words: str
) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    generate_key(tmp_path / "release", tmp_path / "release.pub")
    with pytest.raises(SigningError, match=words):
        ServiceKeySigner(uri, (tmp_path / "release.pub").read_text())


class LocalKms:
    """The one call of AWS KMS that signs, as boto3 makes it."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self.key = key
        self.allows = True
        self.asked: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append({"target": self.headers["X-Amz-Target"], **request})
                status, answer = outer.answer(base64.b64decode(request["Message"]))
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, digest: bytes) -> tuple[int, dict[str, str]]:
        if not self.allows:
            return 400, {"__type": "AccessDeniedException", "Message": "not kms:Sign"}
        signature = self.key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        return 200, {"Signature": base64.b64encode(signature).decode()}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


@pytest.fixture
def kms(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalKms]:
    """A service that holds the key `release`."""
    service = LocalKms(private_key(tmp_path / "release"))
    for name, value in {
        "AWS_ENDPOINT_URL_KMS": f"http://127.0.0.1:{service.server.server_port}",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    yield service
    service.close()


def test_aws_signs_digests_over_its_own_protocol(
    world: World, kms: LocalKms, tmp_path: Path
) -> None:
    public = (tmp_path / "release.pub").read_text()
    world.signer = ServiceKeySigner("awskms:alias/release", public)
    world.release()
    report = world.verify()
    assert report.ok
    assert report.signer == world.signer.name
    assert {call["target"] for call in kms.asked} == {"TrentService.Sign"}
    assert {call["KeyId"] for call in kms.asked} == {"alias/release"}
    assert {call["MessageType"] for call in kms.asked} == {"DIGEST"}
    assert {len(base64.b64decode(call["Message"])) for call in kms.asked} == {32}


def test_nothing_is_attached_where_the_service_refuses_or_signs_with_another_key(
    world: World, kms: LocalKms, tmp_path: Path
) -> None:
    world.signer = ServiceKeySigner("awskms:k", (tmp_path / "release.pub").read_text())
    kms.key = private_key(tmp_path / "other")
    with pytest.raises(SigningError, match="another key"):
        world.release()
    kms.allows = False
    with pytest.raises(SigningError, match=r"AccessDeniedException.*kms:Sign"):
        world.release()
    assert world.store.referrers(world.image.repository, world.image.digest) == []


def test_the_environment_may_hold_the_key_itself_or_name_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = tmp_path / "release", tmp_path / "release.pub"
    generate_key(private, public, passphrase="correct horse")
    monkeypatch.setenv("LOCKGATE_SIGNING_KEY_PEM", private.read_text())
    monkeypatch.setenv("LOCKGATE_SIGNING_KEY_PASSPHRASE", "correct horse")
    workspace = Workspace(Settings(workspace=tmp_path / "workspace"))
    assert workspace.signer().own_policy.public_keys == (public.read_text(),)
    assert "PRIVATE" not in repr(workspace.settings)

    generate_key(tmp_path / "plain", tmp_path / "plain.pub")
    monkeypatch.setenv("LOCKGATE_SIGNING_KEY_URI", f"file2:{tmp_path / 'plain'}")
    monkeypatch.setenv("LOCKGATE_SIGNING_PUBLIC_KEY", str(tmp_path / "plain.pub"))
    signer = Workspace(Settings(workspace=tmp_path / "workspace")).signer()
    assert signer.own_policy.public_keys == ((tmp_path / "plain.pub").read_text(),)
