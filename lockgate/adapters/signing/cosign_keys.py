"""Private keys as `cosign generate-key-pair` writes them: encrypted by a password, in a format of cosign's own.

A PEM around JSON: scrypt makes a key of the password, NaCl's secretbox (XSalsa20, Poly1305) keeps a PKCS#8 key. `cryptography` has
scrypt and Poly1305; the stream cipher stands here, for a few hundred bytes that are read once. The tag is checked before anything
is decrypted. Sources: sigstore's `encrypted` package (go-securesystemslib); D. J. Bernstein, "Extending the Salsa20 nonce"
and "Cryptography in NaCl".
"""

from __future__ import annotations

import base64
import re
import struct
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.poly1305 import Poly1305

from lockgate.domain.digests import read_json

_PEM = re.compile(
    rb"-----BEGIN ENCRYPTED (SIGSTORE|COSIGN) PRIVATE KEY-----(.+?)-----END ENCRYPTED \1 PRIVATE KEY-----",
    re.DOTALL,
)
_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES, _BLOCK_BYTES = 32, 24, 16, 64
_MOST_MEMORY = 1 << 30
"""Bytes that scrypt may take: cosign asks for 64 MiB, and a key file is not always one's own."""
_MASK = 0xFFFFFFFF
_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_COLUMNS = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))
_STEPS = ((1, 0, 3, 7), (2, 1, 0, 9), (3, 2, 1, 13), (0, 3, 2, 18))


class WrongPassword(ValueError):
    """The password is not the key's, or its file was changed: the two cannot be told apart."""


def is_cosign_key(pem: bytes) -> bool:
    """Whether a PEM is of cosign's format, by its header."""
    return _PEM.search(pem) is not None


def decrypt_cosign_key(pem: bytes, password: bytes) -> bytes:
    """The PKCS#8 DER in a key file of cosign's; an empty password is one. Raises `WrongPassword`, `ValueError`."""
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("not a private key of cosign's format")
    try:
        data: Any = read_json(base64.b64decode(b"".join(found[2].split()), validate=True))
        kdf, cipher = data["kdf"], data["cipher"]
        names = (kdf["name"], cipher["name"])
        cost, block, lanes = (int(kdf["params"][name]) for name in ("N", "r", "p"))
        salt, nonce, box = (
            base64.b64decode(text, validate=True)
            for text in (kdf["salt"], cipher["nonce"], data["ciphertext"])
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError("not a private key of cosign's format") from error
    if names != ("scrypt", "nacl/secretbox"):
        raise ValueError(f"a key encrypted by {names[0]} and {names[1]} is not known")
    if min(cost, block, lanes) < 1 or 128 * cost * block * lanes > _MOST_MEMORY:
        raise ValueError(f"scrypt with N={cost}, r={block}, p={lanes} is not run")
    key = Scrypt(salt=salt, length=_KEY_BYTES, n=cost, r=block, p=lanes).derive(password)
    return open_secretbox(key, nonce, box)


def open_secretbox(key: bytes, nonce: bytes, box: bytes) -> bytes:
    """What NaCl's `crypto_secretbox` put into `box`, the tag first. Raises `WrongPassword`, `ValueError`."""
    if len(key) != _KEY_BYTES or len(nonce) != _NONCE_BYTES or len(box) < _TAG_BYTES:
        raise ValueError("not a secretbox")
    tag, encrypted = box[:_TAG_BYTES], box[_TAG_BYTES:]
    subkey = _hsalsa20(key, nonce[:16])
    blocks = -(-(_KEY_BYTES + len(encrypted)) // _BLOCK_BYTES)
    stream = b"".join(_salsa20(subkey, nonce[16:], number) for number in range(blocks))
    try:
        Poly1305.verify_tag(stream[:_KEY_BYTES], encrypted, tag)
    except InvalidSignature as error:
        raise WrongPassword("the password does not open it") from error
    return bytes(a ^ b for a, b in zip(encrypted, stream[_KEY_BYTES:], strict=False))


def _state(key: bytes, middle: bytes) -> list[int]:
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", middle)
    return [_SIGMA[0], *k[:4], _SIGMA[1], *n, _SIGMA[2], *k[4:], _SIGMA[3]]


def _rounds(state: list[int]) -> list[int]:
    x = list(state)
    for _ in range(10):
        for lines in (_COLUMNS, _ROWS):
            for line in lines:
                for target, first, second, turn in _STEPS:
                    value = (x[line[first]] + x[line[second]]) & _MASK
                    x[line[target]] ^= ((value << turn) | (value >> (32 - turn))) & _MASK
    return x


def _salsa20(key: bytes, nonce: bytes, number: int) -> bytes:
    """One block of the key stream."""
    state = _state(key, nonce + struct.pack("<Q", number))
    mixed = _rounds(state)
    return struct.pack("<16I", *((a + b) & _MASK for a, b in zip(state, mixed, strict=True)))


def _hsalsa20(key: bytes, nonce: bytes) -> bytes:
    """The key for the nonce's other half."""
    mixed = _rounds(_state(key, nonce))
    return struct.pack("<8I", *(mixed[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))
