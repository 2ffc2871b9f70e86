"""Uploads of blobs to a registry: streamed, resumed after a break, given up when they get nowhere.

Source: OCI distribution specification 1.1, "Pushing a blob in chunks".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import httpx

from lockgate.adapters.oci.content import Hashed, once, rewindable
from lockgate.adapters.oci.transport import Transport, push_scope
from lockgate.domain.stores import Content
from lockgate.errors import IntegrityError, RegistryError

PIECE = 32 * 1024 * 1024
"""Bytes of one request of an upload that broke off before."""


class Uploads:
    """Uploads to one registry; `name` is the repository's within it."""

    def __init__(self, transport: Transport) -> None:
        self._http = transport

    def begin(self, name: str) -> str:
        """Open an upload; gives its address."""
        path = f"/v2/{name}/blobs/uploads/"
        answer = self._http.request("POST", path, scope=push_scope(name), body=b"", accept=(202,))
        return self.location(answer)

    def location(self, answer: httpx.Response) -> str:
        """Where the upload goes on, as an answer says."""
        location = answer.headers.get("Location")
        if location is None:
            raise RegistryError(f"registry {self._http.host} opened an upload without an address")
        return self._http.following(answer, location)

    def send(self, name: str, content: Content, size: int | None, hashed: Hashed) -> str:
        """Send all of the content; gives the address at which it is to be committed.

        It goes in one request, which every registry takes. After a break it goes in pieces, so that the next break costs a
        piece where the registry (or a proxy that buffers requests before it) can resume. Docker's registry cannot go on
        after a piece that broke off in the middle: there the layer begins again. For the same reason no address is kept for
        the next process: who sends is killed in the middle of a piece.
        """
        again, offset, furthest, failures = rewindable(content), 0, 0, 0
        piece: int | None = None
        location = self.begin(name)
        while True:
            end = size if size is None or piece is None else min(size, offset + piece)
            chunks = again(offset) if again else once(content)
            body = _exactly(hashed.passing(chunks, offset), offset, end, last=end == size)
            problem: RegistryError
            gone = False
            try:
                with self._http.send(
                    "PATCH",
                    location,
                    scope=push_scope(name),
                    headers=_part(offset, end, size),
                    body=body,
                ) as sent:
                    answer = self._http.whole(sent)
                    if answer.status_code in (202, 204):
                        location = self.location(answer)
                        if end is None or end == size:
                            return location
                        offset = end
                        if offset > furthest:
                            furthest, failures = offset, 0
                        continue
                    problem, gone = self._http.refused(answer), answer.status_code == 404
                    if answer.status_code in (400, 403, 413):
                        raise problem
            except httpx.RequestError as error:
                problem = self._http.unreachable("PATCH", location, error)
            except BaseException:
                self.cancel(name, location)
                raise
            failures += 1
            if again is None or failures >= self._http.attempts:
                self.cancel(name, location)
                raise problem
            self._http.pause(0.5 * 2**failures)
            reached = None if gone else self._reached(name, location)
            if reached is None:
                self.cancel(name, location)
                reached = self.begin(name), 0
            location, offset = reached[0], min(reached[1], hashed.size)
            if offset > furthest:
                furthest, failures = offset, 0
            if offset == size:
                return location
            piece = PIECE

    def _reached(self, name: str, location: str) -> tuple[str, int] | None:
        """How many bytes of a broken upload the registry holds, or None if it has to begin again."""
        answer = self._http.request("GET", location, scope=push_scope(name), accept=(204, 404, 416))
        match = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,18})", answer.headers.get("Range", ""))
        # "0-0" is written for one byte and, by Docker's registry, for none.
        if answer.status_code != 204 or match is None or match[1] == "0":
            return None
        return self.location(answer), int(match[1]) + 1

    def cancel(self, name: str, location: str) -> None:
        """Give the upload up. Best effort: registries drop abandoned uploads by themselves."""
        try:
            with self._http.send("DELETE", location, scope=push_scope(name)):
                return
        except (httpx.RequestError, RegistryError):
            return


def _part(offset: int, end: int | None, size: int | None) -> dict[str, str]:
    headers = {"Content-Type": "application/octet-stream"}
    if end is not None:
        headers["Content-Length"] = str(end - offset)
        if offset or end != size:
            headers["Content-Range"] = f"{offset}-{end - 1}"
    return headers


def _exactly(
    chunks: Iterable[bytes], offset: int, end: int | None, *, last: bool
) -> Iterator[bytes]:
    """The chunks up to `end`; `IntegrityError` where they are fewer, or where they are more and nothing was to follow.

    httpx would call that a protocol error, and it would be taken for a broken connection and tried again.
    """
    for chunk in chunks:
        room = len(chunk) if end is None else end - offset
        if len(chunk) > room and last:
            raise IntegrityError(f"content is longer than the {end} bytes announced")
        offset += min(len(chunk), room)
        yield chunk[:room]
        if offset == end and not last:
            return
    if end is not None and offset < end:
        raise IntegrityError(f"content ends after {offset} of {end} bytes")
