"""Hosts of pull requests, one module a kind. Their clients are loaded when one is asked, not before."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from lockgate.adapters.forges.limited import Limited
from lockgate.domain.approval import Forge
from lockgate.domain.policy import ForgePolicy
from lockgate.errors import UsageError

__all__ = ["open_forge"]

SECONDS = 10
"""Time limit of one question, however many requests it takes."""


def open_forge(policy: ForgePolicy, token: str, *, seconds: int = SECONDS) -> Forge:
    """The forge that the policy names. Nothing is asked yet.

    Raises:
        UsageError: the address would send the token in the clear.
    """
    if policy.url is not None:
        _check(policy.url)
    if policy.kind == "github":
        from lockgate.adapters.forges.github import GitHub

        github = GitHub(policy.repository, token, url=policy.url, seconds=seconds)
        return Limited(github, policy, seconds)
    from lockgate.adapters.forges.gitlab import GitLab

    gitlab = GitLab(policy.repository, token, url=policy.url, seconds=seconds)
    return Limited(gitlab, policy, seconds)


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        local = host == "localhost" or (
            host.replace(".", "").isdigit() and ipaddress.ip_address(host).is_loopback
        )
    except ValueError as error:
        raise UsageError(f"the policy's forge.url is no address: {error}") from error
    if (
        not host
        or parts.username
        or not (parts.scheme == "https" or (parts.scheme == "http" and local))
    ):
        raise UsageError("the policy's forge.url has to be https://HOST/…, without a name in it")
