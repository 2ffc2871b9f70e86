"""Keyless signing end to end, against a Sigstore instance of the test's own: a CA with a CT log, and a transparency log.

Sigstore's library makes and checks everything (certificate chain, SCT, inclusion proof, checkpoint, promise); the instance
below is the little that a server has to answer. Sources: RFC 6962; Rekor's v1 API; Fulcio's v2 API.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from lockgate.adapters.signing import KeylessSigner, attest, keyless, sign_image, verify
from lockgate.domain.attestation import GATE_TYPE, PROVENANCE_TYPE
from lockgate.domain.gates.base import REQUIRED_GATES, Decision
from lockgate.domain.policy import SigningPolicy
from lockgate.errors import Refused, SigningError

World = Any
ISSUER = "https://ci.example"
IDENTITY = "release@example.com"
START = "2020-01-01T00:00:00Z"


def b64(body: bytes) -> str:
    return base64.b64encode(body).decode()


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(key: ec.EllipticCurvePrivateKey, body: bytes) -> bytes:
    return key.sign(body, ec.ECDSA(hashes.SHA256()))


class LocalSigstore:
    """Certificates for whoever a token names, and a log that contains one entry at a time."""

    def __init__(self) -> None:
        self.ca, self.ct, self.log = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root = self._certificate(x509.Name([]), self.ca, ca=True).sign(
            self.ca, hashes.SHA256()
        )
        self.hangs = threading.Event()
        self.hangs.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.hangs.wait(30)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/api/v2/signingCert":
                    token = self.headers["Authorization"].removeprefix("Bearer ")
                    answer = outer.certify(body["certificateSigningRequest"], token)
                else:
                    answer = outer.enter(body)
                encoded = json.dumps(answer).encode()
                self.send_response(201)
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        serve = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        serve.start()

    def close(self) -> None:
        self.hangs.set()
        self.server.shutdown()
        self.server.server_close()

    def _certificate(
        self, subject: x509.Name, key: Any, *, ca: bool = False
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        public = key.public_key() if ca else key
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(issuer if ca else subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, **usage), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(authority, critical=False)
        )

    def certify(self, encoded_csr: str, token: str) -> dict[str, Any]:
        csr = x509.load_pem_x509_csr(base64.b64decode(encoded_csr))
        subject = jwt.decode(token, options={"verify_signature": False})["sub"]
        issuer = ISSUER.encode()
        builder = (
            self._certificate(x509.Name([]), csr.public_key())
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(subject)]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), issuer),
                critical=False,
            )
            .add_extension(
                x509.UnrecognizedExtension(
                    ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), b"\x0c%c%b" % (len(issuer), issuer)
                ),
                critical=False,
            )
        )
        draft = builder.sign(self.ca, hashes.SHA256()).tbs_certificate_bytes
        moment = int(time.time() * 1000)
        issuer_hash = hashlib.sha256(der(self.ca)).digest()
        length = struct.pack("!I", len(draft))[1:]
        signed = struct.pack("!BBQH", 0, 0, moment, 1) + issuer_hash + length + draft + b"\0\0"
        signature = sign(self.ct, signed)
        sct = b"\0" + hashlib.sha256(der(self.ct)).digest() + struct.pack("!QH", moment, 0)
        sct += b"\4\3" + struct.pack("!H", len(signature)) + signature
        listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        octets = b"\4" + (b"\x81" if len(listed) > 127 else b"") + bytes([len(listed)]) + listed
        extension = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), octets)
        certificate = builder.add_extension(extension, critical=False).sign(
            self.ca, hashes.SHA256()
        )
        chain = [c.public_bytes(Encoding.PEM).decode() for c in (certificate, self.root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def enter(self, proposed: dict[str, Any]) -> dict[str, Any]:
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])
        (signature,) = envelope["signatures"]
        entry = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {
                    "algorithm": "sha256",
                    "value": hashlib.sha256(content["envelope"].encode()).hexdigest(),
                },
                "payloadHash": {
                    "algorithm": "sha256",
                    "value": hashlib.sha256(payload).hexdigest(),
                },
                "signatures": [
                    {"signature": signature["sig"], "verifier": content["verifiers"][0]}
                ],
            },
        }
        body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        log_id = hashlib.sha256(der(self.log)).digest()
        promised = {
            "body": b64(body),
            "integratedTime": int(time.time()),
            "logID": log_id.hex(),
            "logIndex": 0,
        }
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"log.test - 1\n1\n{b64(root)}\n"
        signed = b64(log_id[:4] + sign(self.log, note.encode()))
        canonical = json.dumps(promised, sort_keys=True, separators=(",", ":")).encode()
        proof = {
            "checkpoint": f"{note}\n\N{EM DASH} log.test {signed}\n",
            "hashes": [],
            "logIndex": 0,
            "rootHash": root.hex(),
            "treeSize": 1,
        }
        verification = {
            "inclusionProof": proof,
            "signedEntryTimestamp": b64(sign(self.log, canonical)),
        }
        return {"0" * 80: {**promised, "verification": verification}}

    def trust_config(self, path: Path) -> Path:
        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            return {
                "baseUrl": self.url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64(der(key)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": {"start": START},
                },
                "logId": {"keyId": b64(hashlib.sha256(der(key)).digest())},
            }

        service = {
            "url": self.url,
            "majorApiVersion": 1,
            "validFor": {"start": START},
            "operator": "test",
        }
        root = {"rawBytes": b64(self.root.public_bytes(Encoding.DER))}
        prefix = "application/vnd.dev.sigstore"
        config = {
            "mediaType": f"{prefix}.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": f"{prefix}.trustedroot+json;version=0.1",
                "tlogs": [log(self.log)],
                "ctlogs": [log(self.ct)],
                "certificateAuthorities": [
                    {
                        "subject": {"organization": "test", "commonName": "test CA"},
                        "uri": self.url,
                        "certChain": {"certificates": [root]},
                        "validFor": {"start": START},
                    }
                ],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": f"{prefix}.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [],
                "rekorTlogUrls": [service],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaUrls": [],
                "tsaConfig": {"selector": "ANY"},
            },
        }
        path.write_text(json.dumps(config))
        return path


def token(subject: str) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": subject, "aud": "sigstore", "iat": now, "exp": now + 600}
    return jwt.encode(claims, "k" * 32, algorithm="HS256")


@pytest.fixture
def sigstore(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalSigstore]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    instance = LocalSigstore()
    yield instance
    instance.close()


POLICY = SigningPolicy(identity=IDENTITY, issuer=ISSUER)


def test_an_identity_signs_and_only_its_own_policy_accepts_it(
    world: World, sigstore: LocalSigstore, tmp_path: Path
) -> None:
    config = sigstore.trust_config(tmp_path / "trust.json")
    for _ in range(2):
        signer = KeylessSigner(POLICY, identity_token=token(IDENTITY), trust_config=config)
        sign_image(world.store, world.image, signer)
        attest(world.store, world.image, signer, PROVENANCE_TYPE, world.provenance())
        attest(world.store, world.image, signer, GATE_TYPE, world.gate())

    def accepted(policy: SigningPolicy, trust: Path = config) -> bool:
        return verify(
            world.store,
            world.image,
            policy,
            candidate=world.candidate.digest,
            require_gates=REQUIRED_GATES,
            trust_config=trust,
        ).ok

    assert accepted(POLICY)
    assert len(world.store.referrers(world.image.repository, world.image.digest)) == 3
    assert not accepted(SigningPolicy(identity="eve@example.com", issuer=ISSUER))
    assert not accepted(SigningPolicy(identity=IDENTITY, issuer="https://other.example"))
    assert not accepted(world.policy), "a policy of keys takes no identities"
    other = LocalSigstore()
    other.close()
    assert not accepted(POLICY, other.trust_config(tmp_path / "other.json"))
    failed = world.gate(report=world.report(scan=Decision.FAIL))
    with pytest.raises(Refused):
        attest(world.store, world.image, signer, GATE_TYPE, failed)


def test_a_job_with_another_identity_than_the_policys_finds_out_before_anything_is_attached(
    world: World, sigstore: LocalSigstore, tmp_path: Path
) -> None:
    config = sigstore.trust_config(tmp_path / "trust.json")
    signer = KeylessSigner(POLICY, identity_token=token("eve@example.com"), trust_config=config)
    with pytest.raises(SigningError, match="would not be accepted"):
        sign_image(world.store, world.image, signer)
    assert world.store.referrers(world.image.repository, world.image.digest) == []


def test_a_sigstore_that_does_not_answer_is_given_up(
    sigstore: LocalSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sigstore.trust_config(tmp_path / "trust.json")
    sigstore.hangs.clear()
    monkeypatch.setattr(keyless, "LIMIT_SECONDS", 0.2)
    with pytest.raises(SigningError, match="no answer"):
        KeylessSigner(POLICY, identity_token=token(IDENTITY), trust_config=config)


def test_without_an_ambient_identity_keyless_signing_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    with pytest.raises(SigningError, match="no ambient OIDC identity"):
        KeylessSigner(POLICY)
    with pytest.raises(SigningError, match="names no identity"):
        KeylessSigner(SigningPolicy())
