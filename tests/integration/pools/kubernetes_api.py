"""A double of the API server as Prefect's Kubernetes worker and its observer see it: Jobs and pods of a few namespaces, with lists
and watches, and nothing that the given rights do not allow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Rights = dict[tuple[str, str], set[str]]
"""Verbs by namespace and resource."""
KINDS = {"jobs": ("Job", "batch/v1"), "pods": ("Pod", "v1")}
CREATED = "2026-01-02T03:04:05Z"


class KubernetesApi:
    def __init__(self, rights: Mapping[tuple[str, str], set[str]]) -> None:
        self.rights = rights
        self.asked: Rights = {}
        self.refused: list[tuple[str, str, str]] = []
        self.posted: list[dict[str, Any]] = []
        """Bodies of Jobs as they came."""
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._changes: list[tuple[str, str, str, dict[str, Any]]] = []
        self._changed = threading.Condition()
        api = self

        class Handler(_Handler):
            server_api = api

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.closed = False
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closed = True
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path) -> Path:
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": url}}],
            "users": [{"name": "worker", "user": {"token": "of-the-worker"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "worker"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        return path

    def jobs(self, namespace: str) -> list[dict[str, Any]]:
        with self._changed:
            return [o for (ns, plural, _), o in self.objects.items() if (ns, plural) == (namespace, "jobs")]  # fmt: skip

    def may(self, namespace: str, resource: str, verb: str) -> bool:
        with self._changed:
            self.asked.setdefault((namespace, resource), set()).add(verb)
            allowed = verb in self.rights.get((namespace, resource), set())
            if not allowed:
                self.refused.append((namespace, resource, verb))
        return allowed

    def put(self, namespace: str, plural: str, item: dict[str, Any]) -> dict[str, Any]:
        """Create or change an object, as a controller or a client would."""
        kind, version = KINDS[plural]
        item = json.loads(json.dumps(item)) | {"kind": kind, "apiVersion": version}
        with self._changed:
            number = len(self._changes) + 1
            metadata = item["metadata"]
            name = metadata.setdefault("name", f"{metadata.get('generateName', '')}{number}")
            metadata |= {"namespace": namespace, "resourceVersion": str(number)}
            metadata.setdefault("uid", f"uid-{name}")
            metadata.setdefault("creationTimestamp", CREATED)
            key = (namespace, plural, name)
            event = "MODIFIED" if key in self.objects else "ADDED"
            self.objects[key] = item
            self._changes.append((namespace, plural, event, item))
            self._changed.notify_all()
        return item

    def remove(self, namespace: str, plural: str, name: str) -> dict[str, Any] | None:
        with self._changed:
            item = self.objects.pop((namespace, plural, name), None)
            if item is not None:
                version = {"resourceVersion": str(len(self._changes) + 1)}
                item = {**item, "metadata": {**item["metadata"], **version}}
                self._changes.append((namespace, plural, "DELETED", item))
                self._changed.notify_all()
        return item

    def fail(self, job: Mapping[str, Any], *, phase: str = "Failed") -> None:
        """The Job's pod did not even get as far as the flow run."""
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        template = job["spec"]["template"]
        labels = template["metadata"]["labels"] | {"job-name": name}
        metadata = {"name": f"{name}-pod", "labels": labels}
        pod = {"metadata": metadata, "spec": template["spec"], "status": {"phase": phase}}
        self.put(namespace, "pods", pod)
        self.put(namespace, "jobs", {**job, "status": {"failed": 1}})

    def listed(self, namespace: str, plural: str, selector: str) -> tuple[list[Any], int]:
        with self._changed:
            items = [
                item
                for (ns, kind, _), item in self.objects.items()
                if (ns, kind) == (namespace, plural) and _selected(item, selector)
            ]
            return items, len(self._changes)

    def next_change(self, after: int) -> tuple[str, str, str, dict[str, Any]] | None:
        with self._changed:
            if len(self._changes) <= after:
                self._changed.wait(1)
            return self._changes[after] if len(self._changes) > after else None


def _selected(item: Mapping[str, Any], selector: str) -> bool:
    labels = item["metadata"].get("labels", {})
    wanted = [part.partition("=") for part in selector.split(",") if part]
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in wanted)  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server_api: KubernetesApi

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        found = _DISCOVERY.get(parts.path.rstrip("/"))
        if found is not None:
            return self._send(200, found)
        path = parts.path.strip("/").split("/")
        rest = path[2:] if path[0] == "api" else path[3:]
        group = "" if path[0] == "api" else f".{path[1]}"
        namespace = "cluster"
        if len(rest) >= 3 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        plural, name = rest[0], rest[1] if len(rest) > 1 else None
        resource = "/".join([plural, *rest[2:]]) + group
        verb = {"POST": "create", "DELETE": "delete", "PATCH": "patch", "PUT": "update"}.get(method)
        if verb is None:
            watching = query.get("watch") in ("true", "1")
            verb = "get" if name else "watch" if watching else "list"
        if not self.server_api.may(namespace, resource, verb):
            return self._status(403, "Forbidden")
        return self._act(namespace, plural, name, rest[2:], verb, query, body)

    def _act(
        self, namespace: str, plural: str, name: str | None, sub: list[str], verb: str,
        query: Mapping[str, str], body: Any,
    ) -> None:  # fmt: skip
        api, selector = self.server_api, query.get("labelSelector", "")
        if verb == "watch":
            return self._watch(namespace, plural, selector, int(query.get("resourceVersion") or 0))
        if verb == "list":
            items, version = api.listed(namespace, plural, selector)
            kind, group = KINDS[plural]
            metadata = {"resourceVersion": str(version)}
            whole = {
                "kind": f"{kind}List",
                "apiVersion": group,
                "metadata": metadata,
                "items": items,
            }
            return self._send(200, whole)
        if verb == "create":
            api.posted.append(body)
            return self._send(201, api.put(namespace, plural, body))
        if sub == ["log"]:
            return self._send_bytes(
                200, b"ModuleNotFoundError: no module named flows\n", "text/plain"
            )
        item = api.objects.get((namespace, plural, str(name)))
        if verb == "delete":
            item = api.remove(namespace, plural, str(name))
        if item is None:
            return self._status(404, "NotFound")
        return self._send(200, item)

    def _watch(self, namespace: str, plural: str, selector: str, at: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        deadline = time.monotonic() + 300
        with suppress(OSError):
            while not self.server_api.closed and time.monotonic() < deadline:
                change = self.server_api.next_change(at)
                if change is None:
                    continue
                at += 1
                where, kind, event, item = change
                if (where, kind) == (namespace, plural) and _selected(item, selector):
                    line = json.dumps({"type": event, "object": item})
                    self.wfile.write(line.encode() + b"\n")
                    self.wfile.flush()

    def _status(self, code: int, reason: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._send(code, status | {"reason": reason, "message": f"{reason}: {self.path}"})

    def _send(self, code: int, data: Any) -> None:
        self._send_bytes(code, json.dumps(data).encode(), "application/json")

    def _send_bytes(self, code: int, data: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _resources(version: str, *entries: tuple[str, str]) -> dict[str, Any]:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version,
        "resources": [
            {"name": name, "singularName": kind.lower(), "namespaced": kind != "Namespace", "kind": kind, "verbs": verbs}
            for name, kind in entries
        ],
    }  # fmt: skip


_VERSION = {"groupVersion": "batch/v1", "version": "v1"}
_DISCOVERY: dict[str, Any] = {
    "/version": {"major": "1", "minor": "35", "gitVersion": "v1.35.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [{"name": "batch", "versions": [_VERSION], "preferredVersion": _VERSION}],
    },
    "/apis/batch": {"name": "batch", "versions": [_VERSION], "preferredVersion": _VERSION},
    "/api/v1": _resources(
        "v1", ("pods", "Pod"), ("pods/log", "Pod"), ("pods/status", "Pod"),
        ("namespaces", "Namespace"), ("events", "Event"),
    ),
    "/apis/batch/v1": _resources("batch/v1", ("jobs", "Job"), ("jobs/status", "Job")),
}  # fmt: skip
"""What every account may read, by the role `system:discovery`."""
