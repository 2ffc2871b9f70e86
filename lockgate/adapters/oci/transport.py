"""Requests to a registry: credentials, token flow, time limits, retries.

Sources: OCI distribution specification 1.1; Docker registry v2 token authentication.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpx

from lockgate.adapters.oci import credentials
from lockgate.domain.digests import read_json, shown
from lockgate.errors import RegistryError

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
ATTEMPTS = 4
"""Tries of a request that meets a broken connection or an overloaded server."""
MAX_ANSWER = 16 << 20
"""Largest answer that is read into memory; blobs are streamed."""
_OF_TRANSFER = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
"""Of answers. Others, and several on top of each other, can make gigabytes of one piece before its size is seen."""
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_TOKEN = re.compile(r"[\x21-\x7e]+")
_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')

Body = bytes | Iterable[bytes] | None


def is_loopback(host: str) -> bool:
    """Whether a registry host is this machine (then plain HTTP is what runs there)."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        # A name, and be it `127.example`, is somebody's.
        return False


def pull_scope(name: str) -> str:
    """What a token must allow to read from the repository `name`."""
    return f"repository:{name}:pull"


def push_scope(name: str) -> str:
    """What a token must allow to read from and write to the repository `name`."""
    return f"repository:{name}:pull,push"


def with_query(location: str, **query: str) -> str:
    """The address with parameters added to those it has."""
    return f"{location}{'&' if '?' in location else '?'}{urlencode(query)}"


class Transport:
    """One registry host. Safe for several threads."""

    def __init__(
        self,
        host: str,
        *,
        plain_http: bool = False,
        find_credentials: Callable[[str], credentials.Credentials | None] = credentials.find,
        attempts: int = ATTEMPTS,
        pause: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.host = host
        loopback = is_loopback(host)
        address = "registry-1.docker.io" if host == "docker.io" else host
        self._base = f"{'http' if plain_http or loopback else 'https'}://{address}"
        self._find_credentials = find_credentials
        self.attempts = attempts
        self.pause = pause
        self._authorizations: dict[str, str] = {}
        self._guard = threading.Lock()
        self._client = httpx.Client(
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=True,
            # httpx by itself asks for every encoding whose library happens to be installed.
            headers={"User-Agent": "lockgate", "Accept-Encoding": "gzip, deflate"},
            event_hooks={"request": [self._check_encrypted]},
            # A proxy of the environment cannot reach this machine's loopback.
            trust_env=not loopback,
            transport=transport,
        )

    def close(self) -> None:
        self._client.close()

    def url(self, path: str) -> str:
        """Absolute address of a path, or of a `Location` the registry gave. Raises `RegistryError` for what is no address."""
        return self._joined(self._base, path)

    def following(self, answer: httpx.Response, location: str) -> str:
        """Where an answer points to. Raises `RegistryError` for what is no address."""
        return self._joined(str(answer.request.url), location)

    def _joined(self, base: str, location: str) -> str:
        try:
            address = urljoin(base, location)
            url = httpx.URL(address)
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError(f"{url.scheme} without a host")
        except (httpx.InvalidURL, ValueError) as error:
            raise RegistryError(f"registry {self.host} names an address that is none") from error
        return address

    def _check_encrypted(self, request: httpx.Request) -> None:
        """Before every request, those that a redirection or an upload's address makes among them."""
        if self._base.startswith("https:") and request.url.scheme != "https":
            raise RegistryError(
                f"registry {self.host} leads to {request.url.host}, without TLS",
                hint="a proxy before the registry has to tell it that it is spoken to with TLS "
                "(X-Forwarded-Proto), or its storage has to speak TLS",
            )

    def request(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        accept: tuple[int, ...] = (200,),
    ) -> httpx.Response:
        """A request that may be repeated; the whole answer. Statuses outside `accept` are a `RegistryError`."""
        for attempt in range(self.attempts):
            last = attempt == self.attempts - 1
            try:
                with self.send(method, path, scope=scope, headers=headers, body=body) as response:
                    whole = self.whole(response)
            except httpx.RequestError as error:
                if last:
                    raise self.unreachable(method, path, error) from error
            else:
                if whole.status_code in accept:
                    return whole
                if last or whole.status_code not in _RETRIED:
                    raise self.refused(whole)
            self.pause(0.5 * 2**attempt)
        raise AssertionError("no attempt was made")

    def whole(self, response: httpx.Response) -> httpx.Response:
        """The answer with its body in memory. Raises `RegistryError` for one of more than `MAX_ANSWER` bytes, unread."""
        pieces, size = [], 0
        for piece in response.iter_bytes():
            size += len(piece)
            if size > MAX_ANSWER:
                raise RegistryError(
                    f"registry {self.host} answers {response.request.method} "
                    f"{response.request.url.path} with more than {MAX_ANSWER} bytes"
                )
            pieces.append(piece)
        # What was compressed on the way is not any more. As bytes: a header need not be ASCII.
        left_out = _OF_TRANSFER - (
            {b"content-length"} if response.request.method == "HEAD" else set()
        )
        kept = [(k, v) for k, v in response.headers.raw if k.lower() not in left_out]
        return httpx.Response(
            response.status_code, headers=kept, content=b"".join(pieces), request=response.request
        )

    @contextmanager
    def send(
        self,
        method: str,
        path: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
    ) -> Iterator[httpx.Response]:
        """One try, the answer's body still unread; a 401 is answered with a token once where the body can be sent again.

        Raises httpx's `RequestError` untranslated: callers know how to go on.
        """
        url = self.url(path)
        response = self._once(method, url, scope, headers, body)
        try:
            authorized = response.status_code == 401 and self._authorize(response, scope)
            if authorized and (body is None or isinstance(body, bytes)):
                response.close()
                response = self._once(method, url, scope, headers, body)
            yield self._readable(response)
        finally:
            response.close()

    def _readable(self, response: httpx.Response) -> httpx.Response:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise RegistryError(f"registry {self.host} answers in an encoding not asked for")
        return response

    def _once(
        self, method: str, url: str, scope: str, headers: Mapping[str, str] | None, body: Body
    ) -> httpx.Response:
        sent = dict(headers or {})
        authorization = self._authorizations.get(scope)
        # An upload may go to another host (object storage): our credentials are none of its business.
        if authorization and _origin(url) == _origin(self._base):
            sent["Authorization"] = authorization
        request = self._client.build_request(method, url, headers=sent, content=body)
        return self._sent(request)

    def _sent(self, request: httpx.Request) -> httpx.Response:
        try:
            return self._client.send(request, stream=True)
        except (httpx.InvalidURL, UnicodeError) as error:
            # Of a redirection, where httpx lets them through.
            raise RegistryError(f"registry {self.host} names an address that is none") from error

    def _authorize(self, response: httpx.Response, scope: str) -> bool:
        challenge = response.headers.get("WWW-Authenticate", "")
        scheme, _, rest = challenge.partition(" ")
        parameters = dict(_PARAMETER.findall(rest))
        known = self._find_credentials(self.host)
        if scheme.lower() == "bearer" and "realm" in parameters:
            value = f"Bearer {self._token(parameters, scope, known)}"
        elif scheme.lower() == "basic" and known and known.username:
            value = known.basic
        else:
            return False
        with self._guard:
            if self._authorizations.get(scope) == value:
                return False
            self._authorizations[scope] = value
        return True

    def _token(
        self, parameters: dict[str, str], scope: str, known: credentials.Credentials | None
    ) -> str:
        realm = self.url(parameters["realm"])
        if urlsplit(realm).scheme != "https" and self._base.startswith("https:"):
            raise RegistryError(f"{self.host} asks to send credentials without TLS to {realm}")
        query = {"service": parameters.get("service", ""), "scope": scope.split(" ")}
        try:
            if known and known.identity_token:
                form = {
                    **query,
                    "scope": scope,
                    "grant_type": "refresh_token",
                    "client_id": "lockgate",
                    "refresh_token": known.identity_token,
                }
                request = self._client.build_request("POST", realm, data=form)
            else:
                basic = {"Authorization": known.basic} if known else {}
                request = self._client.build_request("GET", realm, params=query, headers=basic)
            with closing(self._sent(request)) as response:
                answer = self.whole(self._readable(response))
        except httpx.RequestError as error:
            raise self.unreachable("GET", realm, error) from error
        if answer.status_code != 200:
            raise self.refused(answer)
        try:
            data = read_json(answer.content)
            token = data.get("token") or data["access_token"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"{realm} gave no token") from error
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise RegistryError(f"{realm} gave no token that can be sent")
        return token

    def unreachable(self, method: str, path: str, error: Exception) -> RegistryError:
        """The error for a registry that cannot be talked to."""
        return RegistryError(
            f"registry {self.host} cannot be reached: {method} {urlsplit(self.url(path)).path}: "
            f"{error or type(error).__name__} (tried {self.attempts} times)",
            hint="check that the registry runs and that this machine may reach it, then run the same command again",
        )

    def refused(self, response: httpx.Response) -> RegistryError:
        """The error for an answer that is not what was asked for, with the registry's own words."""
        status, request = response.status_code, response.request
        hint = None
        if status in (401, 403):
            hint = f"log in with `docker login {self.host}` as a user who may do this"
        elif status == 507:
            hint = "the registry's disk is full"
        return RegistryError(
            f"registry {self.host} answered {status} to {request.method} {request.url.path}"
            f"{_words(response)}",
            hint=hint,
        )


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _words(response: httpx.Response) -> str:
    try:
        errors: Any = read_json(response.content)["errors"]
        words = "; ".join(
            f"{_word(e.get('code'))}: {_word(e.get('message'))} {_word(e.get('detail'))}"
            for e in errors
        )
    except (ValueError, KeyError, TypeError, AttributeError, httpx.StreamError):
        return ""
    return f" ({words.strip()[:400]})"


def _word(said: Any) -> str:
    if not said:
        return ""
    text = said if isinstance(said, str) else shown(said)
    return "".join(letter if letter.isprintable() else " " for letter in text)
