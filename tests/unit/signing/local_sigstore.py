"""A Sigstore instance of the tests' own: a CA with an intermediate and a CT log, a transparency log, and a job's OIDC endpoint.

Sigstore's libraries make and check everything (certificate chain, SCT, inclusion proof, checkpoint, promise); this is the little
that the servers have to answer. Sources: RFC 6962; Rekor's v1 API; Fulcio's v2 API; GitHub's OIDC tokens for jobs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from lockgate.domain.policy import SigningPolicy

ISSUER = "https://ci.example"
IDENTITY = "release@example.com"
START = "2020-01-01T00:00:00Z"
JOB_TOKEN = "let-me-ask"


def b64(body: bytes) -> str:
    return base64.b64encode(body).decode()


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(key: ec.EllipticCurvePrivateKey, body: bytes) -> bytes:
    return key.sign(body, ec.ECDSA(hashes.SHA256()))


class LocalSigstore:
    """Certificates for whoever a token names, and a log that contains one entry at a time."""

    def __init__(self) -> None:
        self.top, self.ca, self.ct, self.log = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(4)
        )
        self.authorities = [
            self._certificate(key.public_key(), ("test root", self.top), name).sign(
                self.top, hashes.SHA256()
            )
            for name, key in (("test CA", self.ca), ("test root", self.top))
        ]
        self.asked: list[str] = []
        self.hangs = threading.Event()
        self.hangs.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """What a job asks for its own token."""
                outer.asked.append(self.path)
                known = self.headers["Authorization"] == f"bearer {JOB_TOKEN}"
                self.answer(200 if known else 403, {"value": token(IDENTITY)})

            def do_POST(self) -> None:
                outer.hangs.wait(30)
                outer.asked.append(self.path)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/api/v2/signingCert":
                    token = self.headers["Authorization"].removeprefix("Bearer ")
                    answer = outer.certify(body["certificateSigningRequest"], token)
                else:
                    answer = outer.enter(body)
                self.answer(201, answer)

            def answer(self, status: int, answer: Any) -> None:
                encoded = json.dumps(answer).encode()
                self.send_response(status)
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
        self,
        key: Any,
        issuer: tuple[str, ec.EllipticCurvePrivateKey],
        authority: str | None = None,
    ) -> x509.CertificateBuilder:
        """Of `key`, to be signed by `issuer`; `authority`: its name, if it is one."""
        now = datetime.now(UTC)

        def named(name: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

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
        ca = authority is not None
        issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer[1].public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(named(authority) if authority is not None else x509.Name([]))
            .issuer_name(named(issuer[0]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, **usage), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issued_by, critical=False)
        )

    def certify(self, encoded_csr: str, token: str) -> dict[str, Any]:
        csr = x509.load_pem_x509_csr(base64.b64decode(encoded_csr))
        subject = jwt.decode(token, options={"verify_signature": False})["sub"]
        issuer = ISSUER.encode()
        builder = (
            self._certificate(csr.public_key(), ("test CA", self.ca))
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
        chain = [c.public_bytes(Encoding.PEM).decode() for c in (certificate, *self.authorities)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def enter(self, proposed: dict[str, Any]) -> dict[str, Any]:
        entry = proposed if proposed["kind"] == "hashedrekord" else _dsse_entry(proposed)
        body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        log_id = hashlib.sha256(der(self.log)).digest()
        promised = {
            "body": b64(body),
            "integratedTime": int(time.time()),
            "logID": log_id.hex(),
            "logIndex": 0,
        }
        root = hashlib.sha256(b"\0" + body).digest()
        name = self.url.removeprefix("http://")
        note = f"{name} - 1\n1\n{b64(root)}\n"
        signed = b64(log_id[:4] + sign(self.log, note.encode()))
        canonical = json.dumps(promised, sort_keys=True, separators=(",", ":")).encode()
        proof = {
            "checkpoint": f"{note}\n\N{EM DASH} {name} {signed}\n",
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

    def policy(self, identity: str = IDENTITY, issuer: str = ISSUER, log: int = 1) -> SigningPolicy:
        trust = self.trust_config(log)
        return SigningPolicy(identity=identity, issuer=issuer, sigstore=trust)

    def job(self) -> dict[str, str]:
        """The environment of a job that may ask for a token."""
        return {
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": JOB_TOKEN,
        }

    def trust_config(self, log_version: int = 1) -> dict[str, Any]:
        """As the policy's `signing.sigstore` holds it; `log_version` is that of Rekor's API."""

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
        chain = [{"rawBytes": b64(c.public_bytes(Encoding.DER))} for c in self.authorities]
        prefix = "application/vnd.dev.sigstore"
        return {
            "mediaType": f"{prefix}.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": f"{prefix}.trustedroot+json;version=0.1",
                "tlogs": [log(self.log)],
                "ctlogs": [log(self.ct)],
                "certificateAuthorities": [
                    {
                        "subject": {"organization": "test", "commonName": "test CA"},
                        "uri": self.url,
                        "certChain": {"certificates": chain},
                        "validFor": {"start": START},
                    }
                ],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": f"{prefix}.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [],
                "rekorTlogUrls": [{**service, "majorApiVersion": log_version}],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaUrls": [],
                "tsaConfig": {"selector": "ANY"},
            },
        }


def token(subject: str) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": subject, "aud": "sigstore", "iat": now, "exp": now + 600}
    return jwt.encode(claims, "k" * 32, algorithm="HS256")


def _dsse_entry(proposed: dict[str, Any]) -> dict[str, Any]:
    content = proposed["spec"]["proposedContent"]
    envelope = json.loads(content["envelope"])
    (signature,) = envelope["signatures"]

    def hashed(body: bytes) -> dict[str, str]:
        return {"algorithm": "sha256", "value": hashlib.sha256(body).hexdigest()}

    return {
        "apiVersion": "0.0.1",
        "kind": "dsse",
        "spec": {
            "envelopeHash": hashed(content["envelope"].encode()),
            "payloadHash": hashed(base64.b64decode(envelope["payload"])),
            "signatures": [{"signature": signature["sig"], "verifier": content["verifiers"][0]}],
        },
    }
