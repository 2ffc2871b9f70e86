"""An OCI registry as a store, over the distribution API.

An upload is one streamed request; when it breaks off, the registry is asked how far it came and the rest is sent.
Registries without the referrers API (Docker's registry 2.8) get the index under a tag instead.

Source: OCI distribution specification 1.1.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence

import httpx

from lockgate.adapters.oci import referring
from lockgate.adapters.oci.content import (
    CHUNK,
    MAX_MANIFEST,
    Hashed,
)
from lockgate.adapters.oci.transport import Transport, pull_scope, push_scope, with_query
from lockgate.adapters.oci.uploads import Uploads
from lockgate.domain.digests import Digest, read_json
from lockgate.domain.stores import IMAGE_INDEX, IMAGE_MANIFEST, Content, Descriptor
from lockgate.errors import IntegrityError, RegistryError

_ACCEPT = ", ".join(
    (
        IMAGE_MANIFEST,
        IMAGE_INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_MAX_PAGES = 1000
_NEXT = re.compile(r'<([^>]+)>;\s*rel="?next"?')


class RegistryStore:
    """See `lockgate.domain.stores.ImageStore`. Safe for several threads."""

    def __init__(self, transport: Transport) -> None:
        self._http = transport
        self._uploads = Uploads(transport)
        self._guard = threading.Lock()

    @property
    def location(self) -> str:
        return self._http.host

    def close(self) -> None:
        self._http.close()

    # Blobs

    def has_blob(self, repository: str, digest: Digest) -> bool:
        return self._head(repository, digest) is not None

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        answer = self._head(repository, digest)
        if answer is None:
            return None
        try:
            return int(answer.headers["Content-Length"])
        except (KeyError, ValueError) as error:
            raise RegistryError(f"{self.location} does not tell the size of {digest}") from error

    def _head(self, repository: str, digest: Digest) -> httpx.Response | None:
        name = self._name(repository)
        path = f"/v2/{name}/blobs/{digest}"
        answer = self._http.request("HEAD", path, scope=pull_scope(name), accept=(200, 404))
        return answer if answer.status_code == 200 else None

    def read_blob(
        self, repository: str, digest: Digest, held: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        name = self._name(repository)
        path = f"/v2/{name}/blobs/{digest}"
        hashed, failures = Hashed(), 0
        yield from hashed.passing(held)
        while True:
            start = hashed.size
            headers = {"Accept-Encoding": "identity"}
            if start:
                headers["Range"] = f"bytes={start}-"
            try:
                with self._http.send(
                    "GET", path, scope=pull_scope(name), headers=headers
                ) as answer:
                    if answer.status_code == 404:
                        raise RegistryError(f"{self.location} holds no blob {name}@{digest}")
                    if answer.status_code == 416 and start:
                        # Nothing follows what is there: its digest says whether that was all.
                        break
                    if answer.status_code not in (200, 206):
                        raise self._http.refused(self._http.whole(answer))
                    chunks = answer.iter_bytes()
                    # A server that ignores the range begins again: what we have is skipped.
                    skip = start if answer.status_code == 200 else 0
                    yield from hashed.passing(_without(chunks, skip), start)
                break
            except httpx.RequestError as error:
                failures = 1 if hashed.size > start else failures + 1
                if failures >= self._http.attempts:
                    raise self._http.unreachable("GET", path, error) from error
                self._http.pause(0.5 * 2**failures)
        hashed.check(f"blob {name}@{digest} of {self.location}", digest, None)

    def put_blob(
        self, repository: str, digest: Digest | None, content: Content, size: int | None
    ) -> Digest:
        if digest is not None and self.has_blob(repository, digest):
            return digest
        name, hashed = self._name(repository), Hashed()
        if isinstance(content, Sequence) and sum(map(len, content)) <= CHUNK:
            body = b"".join(hashed.passing(content))
            location = self._uploads.begin(name)
        else:
            body = b""
            location = self._uploads.send(name, content, size, hashed)
        found = hashed.check(f"blob for {repository}", digest, size)
        try:
            answer = self._http.request(
                "PUT",
                with_query(location, digest=found),
                scope=push_scope(name),
                headers={"Content-Type": "application/octet-stream"},
                body=body,
                accept=(201, 204, 400),
            )
        except RegistryError:
            # The answer to a commit that succeeded may have been lost; then the upload is gone and the blob is there.
            if self.has_blob(repository, found):
                return found
            raise
        if answer.status_code == 400:
            if "DIGEST" in answer.text:
                raise IntegrityError(f"{self.location} received other bytes than {found}")
            raise self._http.refused(answer)
        return found

    def mount_blob(self, repository: str, digest: Digest, source: str) -> bool:
        name, origin = self._name(repository), self._name(source)
        path = with_query(f"/v2/{name}/blobs/uploads/", mount=digest, **{"from": origin})
        scope = f"{push_scope(name)} {pull_scope(origin)}"
        answer = self._http.request("POST", path, scope=scope, body=b"", accept=(201, 202))
        if answer.status_code == 202:
            self._uploads.cancel(name, self._uploads.location(answer))
        return answer.status_code == 201

    # Manifests and tags

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        found = self._manifest(repository, reference)
        if found is None:
            at = "@" if ":" in reference else ":"
            raise RegistryError(f"{self.location} holds no {self._name(repository)}{at}{reference}")
        return found

    def _manifest(self, repository: str, reference: str) -> tuple[bytes, str] | None:
        name = self._name(repository)
        answer = self._http.request(
            "GET",
            f"/v2/{name}/manifests/{reference}",
            scope=pull_scope(name),
            headers={"Accept": _ACCEPT},
            accept=(200, 404),
        )
        if answer.status_code == 404:
            return None
        body = answer.content
        if len(body) > MAX_MANIFEST:
            raise RegistryError(f"{name}@{reference} is not a manifest: {len(body)} bytes")
        if ":" in reference and Digest.of_bytes(body) != reference:
            raise IntegrityError(
                f"{self.location} answered {Digest.of_bytes(body)} when asked for {name}@{reference}"
            )
        return body, answer.headers.get("Content-Type", IMAGE_MANIFEST).partition(";")[0].strip()

    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: str | None = None
    ) -> Digest:
        digest = Digest.of_bytes(body)
        referrer = referring.parse(digest, body, media_type)
        name = self._name(repository)
        answer = self._http.request(
            "PUT",
            f"/v2/{name}/manifests/{tag or digest}",
            scope=push_scope(name),
            headers={"Content-Type": media_type},
            body=body,
            accept=(201, 202),
        )
        if referrer is not None and "OCI-Subject" not in answer.headers:
            self._add_referrer(repository, referrer)
        return digest

    def _add_referrer(self, repository: str, referrer: referring.Referrer) -> None:
        """Read, add, write. Registries have no conditional write: two clients that sign the same image in the same
        instant can lose an entry, which the verification that follows every signature finds."""
        tag = referring.fallback_tag(referrer.subject)
        with self._guard:
            known = self._tagged_referrers(repository, tag)
            if all(d.digest != referrer.descriptor.digest for d in known):
                body = referring.index([*known, referrer.descriptor])
                self.put_manifest(repository, body, IMAGE_INDEX, tag)

    def resolve(self, repository: str, tag: str) -> Digest | None:
        found = self._manifest(repository, tag)
        return None if found is None else Digest.of_bytes(found[0])

    def tags(self, repository: str) -> list[str]:
        name = self._name(repository)
        found: list[str] = []
        for page in self._pages(name, f"/v2/{name}/tags/list?n=1000", (200, 404)):
            if page.status_code == 200:
                found += _tags(page)
        return sorted(found)

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Descriptor]:
        name = self._name(repository)
        found: list[Descriptor] = []
        # Registries without the API answer 404; some older ones 400 or 405.
        for page in self._pages(name, f"/v2/{name}/referrers/{digest}", (200, 400, 404, 405)):
            if page.status_code != 200:
                found = self._tagged_referrers(repository, referring.fallback_tag(digest))
                break
            found += referring.parse_index(page.content)
        return [d for d in found if artifact_type in (None, d.artifact_type)]

    def _tagged_referrers(self, repository: str, tag: str) -> list[Descriptor]:
        current = self._manifest(repository, tag)
        return [] if current is None else referring.parse_index(current[0])

    def _pages(self, name: str, path: str, accept: tuple[int, ...]) -> Iterator[httpx.Response]:
        for _ in range(_MAX_PAGES):
            page = self._http.request("GET", path, scope=pull_scope(name), accept=accept)
            yield page
            following = _NEXT.search(page.headers.get("Link", ""))
            if following is None:
                return
            path = self._http.following(page, following[1])
        raise RegistryError(f"{self.location} lists more than {_MAX_PAGES} pages of {name}")

    def _name(self, repository: str) -> str:
        """The repository's name within this registry; another registry's is an error, not a lookup here."""
        first, slash, rest = repository.partition("/")
        if slash and first == self._http.host:
            name = rest
        elif "." in first or ":" in first or first == "localhost":
            raise RegistryError(
                f"{repository} is not in the registry {self._http.host}",
                hint="use the store of the reference's own host, or copy the image first",
            )
        else:
            name = repository
        return f"library/{name}" if self._http.host == "docker.io" and "/" not in name else name


def _tags(answer: httpx.Response) -> list[str]:
    try:
        tags = read_json(answer.content)["tags"] or []
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{answer.request.url} answered something else than tags") from error
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise RegistryError(f"{answer.request.url} answered something else than tags")
    return tags


def _without(chunks: Iterable[bytes], skip: int) -> Iterator[bytes]:
    for chunk in chunks:
        if skip < len(chunk):
            yield chunk[skip:]
        skip = max(0, skip - len(chunk))
