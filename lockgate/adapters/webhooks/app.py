"""The endpoints: check who sends, read the hint, keep the delivery, answer. Everything else happens later and elsewhere."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from lockgate.adapters.webhooks.limits import Buckets, Limits
from lockgate.adapters.webhooks.outbox import Outbox
from lockgate.domain.tracks import Track
from lockgate.domain.webhooks import Sender, deliveries, is_authentic, needs_body, read_hints
from lockgate.errors import DeliveryError

logger = logging.getLogger("lockgate.hooks")

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Nothing to do: known already, or about nothing that is tracked."},
    202: {"description": "Kept on disk; a flow run follows."},
    400: {"description": "Not JSON, or not in the sender's format."},
    401: {"description": "The secret or signature is missing or wrong."},
    404: {"description": "No secret is configured for this sender."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large."},
    429: {"description": "Too many deliveries."},
    503: {"description": "It could not be kept: send it again."},
}
_BODY = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}


class _Answer(Exception):
    """What to answer instead of going on."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


@dataclass
class Reception:
    """Takes deliveries in. For use from one event loop."""

    secrets: Mapping[Sender, Sequence[bytes]]
    tracks: Callable[[], Sequence[Track]]
    """The allow-list, as it is known now; raises `DeliveryError` where it is not known at all."""
    outbox: Outbox
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        limits = self.limits
        self._addresses = Buckets(limits.address_rate, limits.address_burst)
        self._senders = Buckets(limits.sender_rate, limits.sender_burst)

    async def receive(self, sender: Sender, request: Request) -> JSONResponse:
        """The answer to one delivery: never another status than `_ANSWERS` has."""
        try:
            status, said = await self._take(sender, request)
        except _Answer as answer:
            # Neither headers nor body: both may hold secrets.
            logger.info("%s: %d %s", sender, answer.status, answer.why)
            status, said = answer.status, {"refused": answer.why}
        retry = {"Retry-After": "5"} if status in (429, 503) else None
        return JSONResponse(said, status, headers=retry)

    async def _take(self, sender: Sender, request: Request) -> tuple[int, dict[str, Any]]:
        body = await self._authentic_body(sender, request)
        headers = _headers(request)
        try:
            hints = read_hints(sender, headers, json.loads(body))
        except (ValueError, RecursionError) as error:
            # pydantic's errors quote their input: only that there was one is told.
            raise _Answer(400, f"not a payload as {sender} sends it") from error
        try:
            found = deliveries(hints, self.tracks())
            if not found:
                return 200, {"kept": 0, "ignored": "about nothing that is tracked"}
            kept = await self.outbox.store(found, self.clock())
        except DeliveryError as error:
            logger.error("%s", error.message)
            raise _Answer(503, "it cannot be kept") from error
        for delivery in found:
            logger.info("%s: %s %s", delivery.model, delivery.source, delivery.revision)
        return (202 if kept else 200), {"kept": kept, "known": len(found) - kept}

    async def _authentic_body(self, sender: Sender, request: Request) -> bytes:
        secrets = self.secrets.get(sender)
        if not secrets:
            raise _Answer(404, "this sender is not listened to")
        if not self._addresses.take(request.client.host if request.client else ""):
            raise _Answer(429, "too many deliveries from this address")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.limits.body_bytes:
            raise _Answer(413, f"more than {self.limits.body_bytes} bytes")
        headers = _headers(request)
        early = not needs_body(sender)
        if early and not is_authentic(sender, headers, b"", secrets, self.clock()):
            raise _Answer(401, "the secret is missing or wrong")
        body = await self._body(request)
        if not early and not is_authentic(sender, headers, body, secrets, self.clock()):
            raise _Answer(401, "the signature is missing or wrong")
        if not self._senders.take(sender):
            raise _Answer(429, "too many deliveries of this sender")
        return body

    async def _body(self, request: Request) -> bytes:
        """The body, as it arrives: no more of it is ever held than the limit and one chunk."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.limits.body_bytes:
                        raise _Answer(413, f"more than {self.limits.body_bytes} bytes")
        except TimeoutError as error:
            raise _Answer(408, "the body did not arrive in time") from error
        except ClientDisconnect as error:
            raise _Answer(400, "the sender went away") from error
        return bytes(body)


def create_app(reception: Reception) -> FastAPI:
    """One endpoint a sender, and `/healthz`."""
    app = FastAPI(title="Lockgate webhooks", version="1", docs_url=None, redoc_url=None)
    for sender in Sender:
        app.post(
            f"/hooks/{sender.value}", name=sender.value, summary=f"A delivery of {sender.value}",
            responses=_ANSWERS, status_code=202, openapi_extra={"requestBody": _BODY},
        )(_endpoint(reception, sender))  # fmt: skip

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether deliveries are taken."""
        return {"status": "ok"}

    return app


def _endpoint(reception: Reception, sender: Sender) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def endpoint(request: Request) -> JSONResponse:
        return await reception.receive(sender, request)

    return endpoint


def _headers(request: Request) -> dict[str, list[bytes]]:
    headers: dict[str, list[bytes]] = {}
    for name, value in request.headers.raw:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value)
    return headers
