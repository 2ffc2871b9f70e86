"""The API server through the official client: lists, single objects and watches, each with a time limit.

Objects stay as the server wrote them. The client's own classes drop fields that they do not know and raise for those that
they miss, and an observer has to live with the cluster's version, not with the client's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException, OpenApiException
from kubernetes.watch.watch import iter_resp_lines
from urllib3.exceptions import HTTPError

from lockgate.errors import ClusterError

logger = logging.getLogger("lockgate.kube")

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
_LOST_SECONDS = 0.2
"""Pause after a watch that broke off: a server that drops every one of them is not asked without end."""


@dataclass(frozen=True)
class Kind:
    """A kind of namespaced objects, as the API's paths name it."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str, name: str | None = None) -> str:
        root = f"/apis/{self.group}" if self.group else "/api"
        whole = f"{root}/{self.version}/namespaces/{namespace}/{self.plural}"
        return whole if name is None else f"{whole}/{name}"

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True)
class Listing:
    """What a list brought, and the version at which a watch goes on from there."""

    items: tuple[dict[str, Any], ...]
    version: str

    def versions(self) -> dict[str, str]:
        """Resource version of each object, by name."""
        return {i["metadata"]["name"]: i["metadata"].get("resourceVersion", "") for i in self.items}


class Forbidden(ClusterError):
    """The API server does not let this identity read that kind."""


class Reader:
    """Reads of one API server. `ClusterError` if it does not answer in time, refuses, or answers nonsense."""

    def __init__(self, api: client.ApiClient | None = None) -> None:
        """None: the client that the environment configures, made at the first read."""
        self._given = api

    @property
    def host(self) -> str:
        """The API server's address."""
        return str(self._api().configuration.host)

    def list(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> Listing:
        """The objects with these labels; none where the cluster does not know the kind. `Forbidden` without the right."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        data = self._get(kind, kind.path(namespace), {"labelSelector": selector})
        if data is None:
            return Listing((), "")
        try:
            # The server selects; whatever stands in between may have a cache that does not.
            items = tuple(item for item in data["items"] if _labelled(item, labels))
            return Listing(items, str(data.get("metadata", {}).get("resourceVersion", "")))
        except (LookupError, TypeError, AttributeError) as error:
            raise ClusterError(f"the list of {kind} in {namespace} cannot be read") from error

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """The object, None if there is none of this name. `Forbidden` without the right."""
        return self._get(kind, kind.path(namespace, name), {})

    def wait_for_change(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], since: Listing, seconds: float
    ) -> None:
        """Returns when any of these objects is another than in `since`, and after `seconds` at the latest.

        A watch that is lost or too old (410) ends the wait early and says nothing: whoever waits looks again, and watches on
        from what it then sees.
        """
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        query = {
            "labelSelector": selector,
            "watch": "true",
            "timeoutSeconds": str(max(1, round(seconds))),
            "resourceVersion": since.version,
        }
        known = since.versions()
        deadline = time.monotonic() + seconds
        try:
            with self._answer(kind.path(namespace), query, seconds) as response:
                if response.status != 200:
                    raise HTTPError(f"a watch of {kind} was answered {response.status}")
                for line in iter_resp_lines(response):
                    if _is_news(line, labels, known):
                        return
                    if time.monotonic() >= deadline:
                        return
        except (HTTPError, OpenApiException, OSError, ValueError) as error:
            logger.debug("the watch of %s in %s was lost: %r", kind, namespace, error)
        # At the end of the wait this is a stream that ended in time, before it one that was lost.
        time.sleep(max(0.0, min(_LOST_SECONDS, deadline - time.monotonic())))

    def _api(self) -> client.ApiClient:
        if self._given is None:
            self._given = configured_client()
        return self._given

    def _get(self, kind: Kind, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        try:
            with self._answer(path, query, READ_SECONDS) as response:
                status, body = response.status, response.read()
        except ApiException as error:
            status, body = int(error.status or 0), b""
        except (HTTPError, OpenApiException, OSError) as error:
            raise ClusterError(
                f"the API server cannot be reached: {error}",
                hint="check KUBECONFIG and the network; nothing was changed",
            ) from error
        if status == 404:
            return None
        if status in (401, 403):
            raise Forbidden(
                f"the API server answered {status} about {kind}",
                hint=f"Lockgate needs get, list and watch of {kind}: {path}",
            )
        if status != 200:
            raise ClusterError(f"the API server answered {status} about {kind}: {body[:300]!r}")
        try:
            data = json.loads(body)
        except ValueError as error:
            raise ClusterError(f"the API server's answer about {kind} is no JSON") from error
        if not isinstance(data, dict):
            raise ClusterError(f"the API server's answer about {kind} is no object")
        return data

    @contextlib.contextmanager
    def _answer(self, path: str, query: Mapping[str, str], seconds: float) -> Iterator[Any]:
        """The answer, not read yet. `seconds` limits the time between two pieces of it."""
        api = self._api()
        method, url, headers, body, fields = api.param_serialize(
            method="GET",
            resource_path=path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        response = api.call_api(
            method, url, headers, body, fields,
            _request_timeout=(CONNECT_SECONDS, max(1.0, seconds)),
        ).response  # fmt: skip
        try:
            yield response
        finally:
            # A stream that was not read to its end cannot be used again.
            response.close()
            response.release_conn()


def configured_client() -> client.ApiClient:
    """In a pod by its service account, elsewhere by the kubeconfig. `ClusterError` if there is neither."""
    try:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
    except (config.ConfigException, OSError) as error:
        raise ClusterError(
            f"no way to a Kubernetes cluster is configured: {error}",
            hint="set KUBECONFIG, or run where there is a service account",
        ) from error
    return client.ApiClient()


def _labelled(item: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return labels.items() <= (item["metadata"].get("labels") or {}).items()


def _is_news(line: str, labels: Mapping[str, str], known: Mapping[str, str]) -> bool:
    """Whether this event of a watch tells of something that the list did not: servers may begin with what is there."""
    if not line.strip():
        return False
    event = json.loads(line)
    if event.get("type") == "BOOKMARK":
        return False
    if event.get("type") == "ERROR":
        raise HTTPError(f"the watch ended: {event.get('object', {}).get('message')}")
    item = event["object"]
    if not _labelled(item, labels):
        return False
    version = item["metadata"].get("resourceVersion", "")
    return event["type"] == "DELETED" or known.get(item["metadata"]["name"]) != version
