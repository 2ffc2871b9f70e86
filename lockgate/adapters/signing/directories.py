"""Signatures of bare model directories, as OpenSSF Model Signing v1.0 has them: for users outside of any registry.

The statement is built from the digests that the files got when they were fetched; nothing is read again, and the process that
signs needs no model. `model_signing verify` reads the directory and compares. Sources: model-signing 1.1 (`_signing/signing.py`,
`manifest.py`), its Sigstore bundle with a public key.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lockgate.adapters.signing.keys import EcdsaSigner
from lockgate.adapters.signing.signer import Signer
from lockgate.domain.attestation import STATEMENT_TYPE
from lockgate.domain.digests import canonical_json
from lockgate.domain.sources import Snapshot

OMS_TYPE = "https://model_signing/signature/v1.0"
IGNORED = (".git", ".gitattributes", ".github", ".gitignore")
"""What model-signing leaves out by default."""


def sign_snapshot(snapshot: Snapshot, name: str, signer: Signer) -> bytes:
    """The signature file of a directory that holds exactly the snapshot's files. Raises `SigningError`."""
    bundle: Any = json.loads(signer.sign_statement(directory_statement(snapshot, name)))
    if isinstance(signer, EcdsaSigner):
        # model-signing hints at keys by the sha256 of their PEM, cosign by that of their DER form.
        hint = hashlib.sha256(signer.public_pem.encode()).hexdigest()
        bundle["verificationMaterial"]["publicKey"]["hint"] = hint
    return canonical_json(bundle)


def directory_statement(snapshot: Snapshot, name: str) -> bytes:
    """The statement that gets signed: every file by its digest, the subject a digest over those in order of path."""
    # model-signing sorts by the parts of a path: "a/b" comes before "a.txt".
    files = sorted(
        (f for f in snapshot.files if f.path.split("/")[0] not in IGNORED),
        key=lambda file: file.path.split("/"),
    )
    root = hashlib.sha256(b"".join(bytes.fromhex(f.digest.hex) for f in files))
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": root.hexdigest()}}],
            "predicateType": OMS_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": list(IGNORED),
                },
                "resources": [
                    {"name": f.path, "algorithm": "sha256", "digest": f.digest.hex} for f in files
                ],
            },
        }
    )
