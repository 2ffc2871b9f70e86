"""Release keys under a passphrase: PKCS#8 and cosign's own format, from a file or the environment. A wrong one is told as such."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.poly1305 import Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lockgate.adapters.signing import KeySigner, cosign_keys, generate_key
from lockgate.errors import LockgateError, SigningError, UsageError
from lockgate.settings import Settings
from tasks.workspace import Workspace

World = Any

# "Cryptography in NaCl", section 10: key, nonce, message and box of crypto_secretbox_xsalsa20poly1305.
NACL_KEY = "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389"
NACL_NONCE = "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37"
NACL_MESSAGE = (
    "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c6129"
    "6cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde"
    "048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705"
)
NACL_BOX = (
    "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a"
    "c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae"
    "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74"
    "e355a5"
)


def cosign_key(key: Any, password: str, *, cost: int = 1 << 12, name: str = "SIGSTORE") -> str:
    """A key file as `cosign generate-key-pair` writes it; `cost` is scrypt's N, which cosign has higher."""
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    salt, nonce = os.urandom(32), os.urandom(24)
    secret = Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(password.encode())
    subkey = cosign_keys._hsalsa20(secret, nonce[:16])
    stream = b"".join(cosign_keys._salsa20(subkey, nonce[16:], i) for i in range(8))
    hidden = bytes(a ^ b for a, b in zip(der, stream[32:], strict=False))
    box = Poly1305.generate_tag(stream[:32], hidden) + hidden
    text = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": cost, "r": 8, "p": 1},
            "salt": base64.b64encode(salt).decode(),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(box).decode(),
    }
    body = base64.encodebytes(json.dumps(text).encode()).decode()
    return (
        f"-----BEGIN ENCRYPTED {name} PRIVATE KEY-----\n{body}"
        f"-----END ENCRYPTED {name} PRIVATE KEY-----\n"
    )


def pkcs8(directory: Path, passphrase: str) -> str:
    generate_key(directory / "pkcs8.key", directory / "pkcs8.pub", passphrase)
    return (directory / "pkcs8.key").read_text()


def cosigns(_: Path, passphrase: str) -> str:
    return cosign_key(ec.generate_private_key(ec.SECP256R1()), passphrase)


def test_the_secretbox_is_nacls() -> None:
    key, nonce, box = (bytes.fromhex(text) for text in (NACL_KEY, NACL_NONCE, NACL_BOX))
    assert cosign_keys.open_secretbox(key, nonce, box).hex() == NACL_MESSAGE
    for place in (0, 16, len(box) - 1):
        changed = bytearray(box)
        changed[place] ^= 1
        with pytest.raises(cosign_keys.WrongPassword):
            cosign_keys.open_secretbox(key, nonce, bytes(changed))


@pytest.mark.parametrize("make", [pkcs8, cosigns])
def test_an_encrypted_key_signs_with_its_passphrase_alone(
    world: World, tmp_path: Path, make: Callable[[Path, str], str]
) -> None:
    pem = make(tmp_path, "correct horse")
    path = tmp_path / "encrypted.key"
    path.write_text(pem)
    world.signer = KeySigner(path, "correct horse")
    world.release()
    assert world.verify(policy=world.signer.own_policy).ok
    assert KeySigner(pem, "correct horse").name == world.signer.name
    for passphrase, said in (
        ("battery staple", "the passphrase does not open"),
        (None, "is encrypted, and no passphrase is given"),
    ):
        with pytest.raises(SigningError, match=said) as caught:
            KeySigner(path, passphrase)
        assert str(path) in str(caught.value)
        assert "LOCKGATE_SIGNING_KEY_PASSPHRASE" in str(caught.value)
        assert "battery" not in str(caught.value)


def test_the_older_header_of_cosign_and_an_empty_password_are_taken() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pems = [cosign_key(key, ""), cosign_key(key, "", name="COSIGN")]
    assert len({KeySigner(pem).name for pem in pems}) == 1


def test_a_passphrase_for_a_key_that_has_none_is_told_apart(tmp_path: Path) -> None:
    generate_key(tmp_path / "plain", tmp_path / "plain.pub")
    with pytest.raises(SigningError, match="is not encrypted"):
        KeySigner(tmp_path / "plain", "correct horse")


def _with(**changes: Any) -> str:
    pem = cosign_key(ec.generate_private_key(ec.SECP256R1()), "")
    header, *lines, footer = pem.strip().splitlines()
    data = json.loads(base64.b64decode("".join(lines)))
    for name, value in changes.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    body = base64.encodebytes(json.dumps(data).encode()).decode()
    return f"{header}\n{body}{footer}\n"


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        (_with(kdf={"name": "argon2"}), "argon2"),
        (_with(cipher={"name": "rot13"}), "rot13"),
        (_with(kdf={"params": {"N": 1 << 40, "r": 8, "p": 1}}), "is not run"),
        (_with(kdf={"params": {"N": 12345, "r": 8, "p": 1}}), "not a private key"),
        (_with(kdf={"params": {"N": float("inf"), "r": 8, "p": 1}}), "cosign's format"),
        (_with(cipher={"nonce": "AAAA"}), "not a secretbox"),
        (_with(ciphertext="!"), "cosign's format"),
        (_with(ciphertext=3), "cosign's format"),
        (_with().replace("\n", "\n*", 1), "cosign's format"),
        (cosign_key(ec.generate_private_key(ec.SECP384R1()), ""), "not an ECDSA P-256 key"),
    ],
    ids=["kdf", "cipher", "memory", "cost", "infinity", "nonce", "base64", "type", "pem", "curve"],
)
def test_a_key_file_that_cannot_be_used_says_why(pem: str, said: str) -> None:
    with pytest.raises(SigningError, match=said):
        KeySigner(pem)


def test_the_passphrase_comes_from_the_environment_or_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = tmp_path / "release.key", tmp_path / "passphrase"
    key.write_text(cosigns(tmp_path, "correct horse"))
    secret.write_text("correct horse\n")
    monkeypatch.setenv("LOCKGATE_SIGNING_KEY", str(key))
    names: list[str] = []
    for variable, value in (("", "correct horse"), ("_FILE", str(secret))):
        with monkeypatch.context() as context:
            context.setenv(f"LOCKGATE_SIGNING_KEY_PASSPHRASE{variable}", value)
            settings = Settings(workspace=tmp_path / "workspace")
            names.append(Workspace(settings).signer().name)
            assert "correct horse" not in repr(settings)
    assert names[0] == names[1]
    monkeypatch.setenv("LOCKGATE_SIGNING_KEY_PASSPHRASE_FILE", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="absent"):
        Workspace(Settings(workspace=tmp_path / "workspace")).signer()
    secret.write_text("battery staple")
    monkeypatch.setenv("LOCKGATE_SIGNING_KEY_PASSPHRASE_FILE", str(secret))
    with pytest.raises(LockgateError, match="does not open"):
        Workspace(Settings(workspace=tmp_path / "workspace")).signer()
