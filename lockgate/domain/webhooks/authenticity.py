"""Whether a delivery was sent by one who knows the secret, by what each sender really sends. All comparisons take the same
time whatever is given.

* Hugging Face Hub: the secret itself in `X-Webhook-Secret`. https://huggingface.co/docs/hub/webhooks
* GitHub: HMAC-SHA256 of the body in `X-Hub-Signature-256: sha256=…`.
  https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
* GitLab: the secret itself in `X-Gitlab-Token`. https://docs.gitlab.com/user/project/integrations/webhooks/
* Gitea and Forgejo: HMAC-SHA256 of the body, hexadecimal, in `X-Gitea-Signature`. https://docs.gitea.com/usage/webhooks
* distribution: a header of the endpoint's configuration, `Authorization: Bearer …`.
  https://distribution.github.io/distribution/about/notifications/
* Harbor: the policy's "Auth Header" as `Authorization`, as it was typed in.
  https://goharbor.io/docs/main/working-with-projects/project-configuration/configure-webhooks/
* generic: HMAC-SHA256 over `X-Lockgate-Timestamp`, a dot and the body, in `X-Lockgate-Signature: sha256=…`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

WINDOW_SECONDS = 300.0
"""How far a generic delivery's timestamp may be from now, either way."""

Headers = Mapping[str, Sequence[bytes]]
"""Values by lower-case name, as they arrived."""


class Sender(StrEnum):
    HUB = "hub"
    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"
    DISTRIBUTION = "distribution"
    HARBOR = "harbor"
    GENERIC = "generic"


_HEADER = {
    Sender.HUB: "x-webhook-secret",
    Sender.GITHUB: "x-hub-signature-256",
    Sender.GITLAB: "x-gitlab-token",
    Sender.GITEA: "x-gitea-signature",
    Sender.DISTRIBUTION: "authorization",
    Sender.HARBOR: "authorization",
    Sender.GENERIC: "x-lockgate-signature",
}
_SIGNED = frozenset({Sender.GITHUB, Sender.GITEA, Sender.GENERIC})


def needs_body(sender: Sender) -> bool:
    """Whether the body has to be read before one can tell: it is signed. The others send their secret in a header."""
    return sender in _SIGNED


def is_authentic(
    sender: Sender, headers: Headers, body: bytes, secrets: Sequence[bytes], now: float
) -> bool:
    """Whether one of `secrets` was used. Without a secret nothing is authentic, nor with a header that came twice.

    `body` is not looked at for a sender that signs nothing; `now` is the time in seconds since 1970.
    """
    given = _single(headers, _HEADER[sender])
    if given is None:
        return False
    if sender is Sender.GENERIC:
        stamp = timestamp(headers)
        if stamp is None or abs(now - stamp) > WINDOW_SECONDS:
            return False
        body = b"%d.%s" % (stamp, body)
    found = False
    for secret in secrets:
        for expected in _expected(sender, secret, body):
            # Digests of both: not even the length of a secret can be told from the time taken.
            found |= hmac.compare_digest(_sha256(given), _sha256(expected))
    return found


def timestamp(headers: Headers) -> int | None:
    """The time that a generic delivery was signed with, in seconds since 1970."""
    given = _single(headers, "x-lockgate-timestamp")
    return int(given) if given is not None and re.fullmatch(rb"[1-9][0-9]{0,11}", given) else None


def sign(secret: bytes, stamp: int, body: bytes) -> str:
    """Value of `X-Lockgate-Signature` for a generic delivery."""
    return "sha256=" + hmac.new(secret, b"%d.%s" % (stamp, body), hashlib.sha256).hexdigest()


def _expected(sender: Sender, secret: bytes, body: bytes) -> tuple[bytes, ...]:
    if sender in _SIGNED:
        prefix = b"" if sender is Sender.GITEA else b"sha256="
        return (prefix + hmac.new(secret, body, hashlib.sha256).hexdigest().encode(),)
    if sender in (Sender.DISTRIBUTION, Sender.HARBOR):
        return (b"Bearer " + secret, secret)
    return (secret,)


def _single(headers: Headers, name: str) -> bytes | None:
    values = headers.get(name, ())
    return values[0] if len(values) == 1 and values[0] else None


def _sha256(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
