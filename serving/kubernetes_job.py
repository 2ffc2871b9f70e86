"""A candidate's server for evaluation and benchmark as a Job in a Kubernetes namespace of its own.

Only that namespace is written to: a Job, which the cluster itself ends and removes when nobody else does
(`activeDeadlineSeconds`, `ttlSecondsAfterFinished`), and a Service that the Job owns. Rights needed there: create, get and
delete of Jobs, create and delete of Services, list of Pods and get of their logs; and get of Nodes, to say what a measurement
was made on.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from kubernetes import client
from urllib3.exceptions import HTTPError

from lockgate.adapters.kube import configured_client
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Fingerprint
from lockgate.domain.spec import ServingSpec
from lockgate.errors import ServingError
from serving.candidate_server import Endpoint
from serving.engines.registry import engine as engine_named
from serving.ephemeral import log_tail
from serving.manifests import test_job
from serving.smoke import smoke_generation, warm_up

ADDRESS = "http://{name}.{namespace}.svc:{port}"
"""Where a Service is reached from inside the cluster."""

logger = logging.getLogger("lockgate.serving")

_TIMEOUT = (5, 20)
_LOG_BYTES = 16 * 1024 * 1024
_GONE_SECONDS = 90.0
_HOPELESS = frozenset(
    {"InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError"}
)


class KubernetesServer:
    """Serves candidates as Jobs made of `pod_template` (a slot's, see `serving.manifests.pod_template`)."""

    def __init__(
        self,
        pod_template: Mapping[str, Any] | None,
        *,
        namespace: str,
        node_selector: Mapping[str, str],
        address: str = ADDRESS,
        ready_seconds: float = 1800.0,
        lifetime_seconds: int = 4 * 3600,
        poll_seconds: float = 2.0,
        api: client.ApiClient | None = None,
    ) -> None:
        """`lifetime_seconds` is the cluster's own limit for a whole measurement. Nothing is contacted yet."""
        self._template = pod_template
        self._namespace = namespace
        self._node_selector = dict(node_selector)
        self._address = address
        self._ready_seconds = ready_seconds
        self._lifetime_seconds = lifetime_seconds
        self._poll_seconds = poll_seconds
        self._given_api = api

    def hardware(self, serving: ServingSpec) -> Digest:
        """By what is asked of the scheduler. What it gave is in the evidence's fingerprint, and that is what gates compare."""
        return Digest.of_json(
            {
                "kubernetes": self._node_selector,
                "cpu": serving.resources.cpu,
                "gpu": serving.resources.gpu,
            }
        )

    @contextlib.contextmanager
    def serve(self, candidate: Candidate, *, log_path: Path) -> Iterator[Endpoint]:
        """See `CandidateServer.serve`. What an earlier run of the same candidate left behind is removed first."""
        if self._template is None:
            raise ServingError(
                "no pod template was given for the candidate",
                hint="the release flow renders it where LOCKGATE_TEST_SERVER is `kubernetes`",
            )
        name = f"lockgate-test-{candidate.digest.hex[:20]}"
        manifest = test_job.job(
            self._template, candidate, name=name, namespace=self._namespace,
            lifetime_seconds=self._lifetime_seconds, node_selector=self._node_selector,
        )  # fmt: skip
        log_path.parent.mkdir(parents=True, exist_ok=True)
        api = _Api(
            self._given_api or configured_client(), self._namespace, name, self._poll_seconds
        )
        api.remove()
        failed = True
        try:
            uid = api.create_job(manifest)
            api.create_service(test_job.service(name, self._namespace, candidate, owner_uid=uid))
            yield self._ready(api, candidate, log_path, time.monotonic() + self._ready_seconds)
            failed = False
        finally:
            # The log first: it goes with the pod.
            api.keep_log(log_path)
            try:
                api.remove()
            except ServingError as error:
                if not failed:
                    raise
                # The error that led here matters more; the cluster removes the Job after its deadline.
                logger.warning("%s", error.message)

    def _ready(self, api: _Api, candidate: Candidate, log_path: Path, deadline: float) -> Endpoint:
        engine = engine_named(candidate.serving.engine)
        try:
            pod = api.wait_ready(deadline)
            prints = self._fingerprint(api, candidate, pod)
            base_url = self._address.format(
                name=api.name, namespace=self._namespace, port=engine.port
            )
            self._wait_reached(base_url + engine.health_path, deadline)
            model_name = candidate.serving.served_model_name
            smoke_generation(
                base_url, model_name, timeout_seconds=max(30.0, deadline - time.monotonic())
            )
            warm_up(base_url, model_name)
        except ServingError as error:
            api.keep_log(log_path)
            raise ServingError(
                f"{error.message}\n{log_tail(log_path)}", hint=error.hint, log=log_path
            ) from error
        return Endpoint(base_url, model_name, prints, log_path, exclusive_cores=True)

    def _fingerprint(self, api: _Api, candidate: Candidate, pod: Mapping[str, Any]) -> Fingerprint:
        serving = candidate.serving
        engine = engine_named(serving.engine)
        node = api.node(pod["spec"]["nodeName"])
        labels = node["metadata"].get("labels", {})
        machine = {
            "instance": labels.get("node.kubernetes.io/instance-type"),
            "architecture": node["status"]["nodeInfo"]["architecture"],
            "machine_cores": node["status"]["capacity"]["cpu"],
            "cores": serving.resources.cpu,
            "gpu": labels.get("nvidia.com/gpu.product"),
            "gpus": serving.resources.gpu,
        }
        return Fingerprint(
            hardware=Digest.of_json(machine),
            cpu=machine["instance"] or machine["architecture"],
            cores=serving.resources.cpu,
            gpu=machine["gpu"] if serving.resources.gpu else None,
            engine=engine.name,
            # The runtime image is what decides it, to the byte.
            engine_version=str(candidate.runtime.digest),
            arguments=tuple(
                engine.arguments(serving, model_path="/models", host="0.0.0.0", port=engine.port)
            ),
        )

    def _wait_reached(self, url: str, deadline: float) -> None:
        """A ready pod is not at once behind its Service everywhere."""
        while True:
            try:
                answer = httpx.get(url, timeout=5, trust_env=False)
                if answer.status_code == 200:
                    return
                last = f"status {answer.status_code}"
            except httpx.HTTPError as error:
                last = repr(error)
            if time.monotonic() >= deadline:
                raise ServingError(
                    f"the pod is ready, but {url} does not answer: {last}",
                    hint="measure from inside the cluster, or set LOCKGATE_TEST_ADDRESS; does a NetworkPolicy let this pod in?",
                )
            time.sleep(self._poll_seconds)


class _Api:
    """The few calls about one Job, each translated once. An object that is not there is nothing to be removed."""

    def __init__(
        self, api: client.ApiClient, namespace: str, name: str, poll_seconds: float
    ) -> None:
        self.name = name
        self._namespace = namespace
        self._poll_seconds = poll_seconds
        self._api = api
        self._batch = client.BatchV1Api(api)
        self._core = client.CoreV1Api(api)

    def create_job(self, manifest: dict[str, Any]) -> str:
        made = self._call("create the Job", self._batch.create_namespaced_job, manifest)
        return str(made["metadata"]["uid"])

    def create_service(self, manifest: dict[str, Any]) -> None:
        self._call("create the Service", self._core.create_namespaced_service, manifest)

    def node(self, name: str) -> dict[str, Any]:
        try:
            answer = self._core.read_node(name, _request_timeout=_TIMEOUT)
        except (client.ApiException, HTTPError, OSError) as error:
            raise ServingError(
                f"node {name} cannot be read: {_said(error)}",
                hint="Lockgate needs get of nodes: a measurement must say what it was made on",
            ) from error
        return self._plain(answer)

    def pods(self) -> list[dict[str, Any]]:
        selector = f"{test_job.TEST_LABEL}={self.name}"
        try:
            answer = self._core.list_namespaced_pod(
                self._namespace, label_selector=selector, _request_timeout=_TIMEOUT
            )
        except (client.ApiException, HTTPError, OSError) as error:
            raise ServingError(
                f"the pods of {self.name} cannot be listed: {_said(error)}"
            ) from error
        return list(self._plain(answer)["items"])

    def wait_ready(self, deadline: float) -> dict[str, Any]:
        """The pod, once it is ready. `ServingError` if it ended, can never start, or is not ready in time."""
        last = "no pod was made"
        while True:
            pods = self.pods()
            if pods:
                pod = pods[0]
                if _is_ready(pod):
                    return pod
                last, final = _state(pod)
                if final:
                    raise ServingError(f"the test server {self.name} failed: {last}")
            if time.monotonic() >= deadline:
                raise ServingError(
                    f"the test server {self.name} was not ready in time: {last}",
                    hint="is there a node with room for it that its selector admits?",
                )
            time.sleep(self._poll_seconds)

    def keep_log(self, path: Path) -> None:
        """The end of the server's output; why there is none is written in its place."""
        try:
            pods = self.pods()
            text = "(there was no pod)"
            if pods:
                # Unread: the client would make a Python literal of what is not JSON.
                answer = self._core.read_namespaced_pod_log(
                    pods[0]["metadata"]["name"], self._namespace, limit_bytes=_LOG_BYTES,
                    tail_lines=20_000, _preload_content=False, _request_timeout=_TIMEOUT,
                )  # fmt: skip
                text = answer.data.decode(errors="replace")
        except (ServingError, client.ApiException, HTTPError, OSError) as error:
            text = f"(the log could not be read: {_said(error)})"
        if not path.exists() or not text.startswith("("):
            path.write_text(text)

    def remove(self) -> None:
        """Delete Job and Service, and wait until the Job and its pod are gone: the next one may need their node."""
        for what, delete in (
            ("Service", self._core.delete_namespaced_service),
            ("Job", self._batch.delete_namespaced_job),
        ):
            try:
                delete(
                    self.name, self._namespace, propagation_policy="Foreground",
                    _request_timeout=_TIMEOUT,
                )  # fmt: skip
            except client.ApiException as error:
                if error.status != 404:
                    raise ServingError(
                        f"the {what} {self.name} could not be deleted: {_said(error)}",
                        hint=f"the cluster removes it after its deadline; or kubectl delete -n {self._namespace} "
                        f"{what.lower()} {self.name}",
                    ) from error
            except (HTTPError, OSError) as error:
                raise ServingError(f"the API server cannot be reached: {_said(error)}") from error
        deadline = time.monotonic() + _GONE_SECONDS
        while self._is_there():
            if time.monotonic() >= deadline:
                raise ServingError(f"the Job {self.name} is still there after it was deleted")
            time.sleep(self._poll_seconds)

    def _is_there(self) -> bool:
        try:
            self._batch.read_namespaced_job(self.name, self._namespace, _request_timeout=_TIMEOUT)
        except client.ApiException as error:
            if error.status == 404:
                return False
            raise ServingError(f"the Job {self.name} cannot be read: {_said(error)}") from error
        except (HTTPError, OSError) as error:
            raise ServingError(f"the API server cannot be reached: {_said(error)}") from error
        return True

    def _call(
        self, what: str, create: Callable[..., Any], manifest: dict[str, Any]
    ) -> dict[str, Any]:
        try:
            answer = create(self._namespace, manifest, _request_timeout=_TIMEOUT)
        except (client.ApiException, HTTPError, OSError) as error:
            raise ServingError(
                f"Lockgate could not {what} {self.name} in namespace {self._namespace}: {_said(error)}",
                hint="platform/tests in the GitOps repository holds the namespace and the rights",
            ) from error
        return self._plain(answer)

    def _plain(self, answer: Any) -> dict[str, Any]:
        data = self._api.sanitize_for_serialization(answer)
        return data if isinstance(data, dict) else {}


def _said(error: BaseException) -> str:
    if isinstance(error, client.ApiException):
        return f"{error.status} {error.reason} {str(error.body or '')[:300]}".strip()
    return str(error)


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _state(pod: Mapping[str, Any]) -> tuple[str, bool]:
    """What the pod says of itself, and whether it can still become ready."""
    status = pod.get("status", {})
    phase = status.get("phase", "Unknown")
    if phase in ("Failed", "Succeeded"):
        why = [str(status[k]) for k in ("reason", "message") if status.get(k)]
        for container in status.get("containerStatuses", []):
            ended = container.get("state", {}).get("terminated")
            if ended:
                why.append(f"exit code {ended.get('exitCode')} ({ended.get('reason')})")
        return f"its pod {phase.lower()}: {', '.join(why) or 'no reason given'}", True
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            text = f"{waiting.get('reason')}: {waiting.get('message') or ''}".rstrip(": ")
            return text, waiting.get("reason") in _HOPELESS
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message')}", False
    return f"phase {phase}", False
