"""A candidate served as a Job: the real Kubernetes client against an HTTP server that knows the few calls, and against the
Service's place a server that answers. What is created is validated against Kubernetes' own schemas."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
from kubernetes import client

from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import ServingSpec
from lockgate.errors import RenderingError, ServingError
from serving.engines.registry import engine
from serving.kubernetes_job import KubernetesServer
from serving.manifests import pod_template

ROOT = Path(__file__).parents[3]
NAMESPACE = "lockgate-tests"
SELECTOR = {"node.kubernetes.io/instance-type": "g6.xlarge"}
CANDIDATE = Candidate(
    model=ImageRef.parse("registry.example.com/smol@" + Digest.of_bytes(b"model")),
    runtime=ImageRef.parse("registry.example.com/vllm@" + Digest.of_bytes(b"runtime")),
    serving=ServingSpec.model_validate(
        {
            "served_model_name": "smol",
            "args": ["--enforce-eager"],
            "resources": {"cpu": 2, "gpu": 1},
        }
    ),
)
OBJECT = re.compile(r"/(?:api/v1|apis/batch/v1)/namespaces/([^/]+)/(jobs|services|pods)/?([^/]*)/?(log)?$")  # fmt: skip


class Cluster:
    """An API server with one kubelet: a Job gets a pod that is in the `state` asked for. Also what the Service leads to."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.status: dict[str, Any] = READY
        self.log = "INFO loading weights\nERROR out of memory\n"
        self.answer = "Paris, Lyon and Marseille are large cities."
        self.forbidden = ""
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                cluster.serve(self, "GET", None)

            def do_POST(self) -> None:
                cluster.serve(self, "POST", self.rfile.read(int(self.headers["content-length"])))

            def do_DELETE(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                cluster.serve(self, "DELETE", None)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def serve(self, handler: BaseHTTPRequestHandler, method: str, body: bytes | None) -> None:
        code, answer = self.answered(method, handler.path, body)
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        handler.send_response(code)
        kind = "text/plain" if isinstance(answer, str) else "application/json"
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def answered(self, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        parts = urlsplit(path)
        if parts.path == "/health":
            return 200, ""
        if parts.path in ("/v1/completions", "/v1/chat/completions"):
            return 200, {"choices": [{"text": self.answer, "message": {"content": self.answer}}]}
        self.calls.append(f"{method} {parts.path}")
        if self.forbidden and self.forbidden in f"{method} {parts.path}":
            return 403, {"kind": "Status", "message": "forbidden by a test"}
        if parts.path == "/api/v1/nodes/node-1":
            return 200, NODE
        match = OBJECT.match(parts.path)
        assert match, parts.path
        namespace, kind, name, log = match.groups()
        assert namespace == NAMESPACE
        if log:
            return 200, self.log
        if method == "POST":
            assert body is not None
            return self.create(kind, json.loads(body))
        if method == "GET" and not name:
            wanted = parse_qs(parts.query)["labelSelector"][0].split("=")[1]
            pods = [p for (k, n), p in self.objects.items() if k == kind and n == f"{wanted}-x"]
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}
        found = self.objects.get((kind, name))
        if found is None:
            return 404, {"kind": "Status", "code": 404}
        if method == "DELETE":
            del self.objects[kind, name]
            if kind == "jobs":
                assert "propagationPolicy=Foreground" in parts.query
                self.objects.pop(("pods", f"{name}-x"), None)
        return 200, found

    def create(self, kind: str, item: dict[str, Any]) -> tuple[int, Any]:
        self.created.append(json.loads(json.dumps(item)))
        name = item["metadata"]["name"]
        if (kind, name) in self.objects:
            return 409, {"kind": "Status", "reason": "AlreadyExists"}
        item["metadata"]["uid"] = "uid-1"
        self.objects[kind, name] = item
        if kind == "jobs":
            template = item["spec"]["template"]
            self.objects["pods", f"{name}-x"] = {
                "metadata": {"name": f"{name}-x", "labels": template["metadata"]["labels"]},
                "spec": {**template["spec"], "nodeName": "node-1"},
                "status": self.status,
            }
        return 201, item

    def target(self, template: dict[str, Any], **options: Any) -> KubernetesServer:
        return KubernetesServer(
            template, namespace=NAMESPACE, node_selector=SELECTOR, address=self.url,
            poll_seconds=0.05, ready_seconds=options.pop("ready_seconds", 20),
            api=client.ApiClient(client.Configuration(host=self.url)), **options,
        )  # fmt: skip


READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
NODE = {
    "metadata": {
        "name": "node-1",
        "labels": {**SELECTOR, "nvidia.com/gpu.product": "NVIDIA-L4"},
    },
    "status": {"capacity": {"cpu": "4"}, "nodeInfo": {
        "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux",
        "osImage": "", "systemUUID": "",
    }},
}  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def template(kubectl: Path) -> dict[str, Any]:
    """What the slot's Deployment would run, from the template repository's own base."""
    return pod_template("smol", "local", CANDIDATE, ROOT / "gitops_repo_template", kubectl=kubectl)


def test_a_candidate_is_served_by_a_job_with_its_slots_own_arguments_and_is_gone_afterwards(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    server = cluster.target(template)
    with server.serve(CANDIDATE, log_path=log) as endpoint:
        assert (endpoint.base_url, endpoint.model_name) == (cluster.url, "smol")
        assert (endpoint.fingerprint.cpu, endpoint.fingerprint.gpu) == ("g6.xlarge", "NVIDIA-L4")
        assert {kind for kind, _ in cluster.objects} == {"jobs", "services", "pods"}
    assert not cluster.objects
    assert "out of memory" in log.read_text()
    job, service = cluster.created
    for item in (job, service):
        kubernetes_validate.validate(item, "1.35", strict=True)
        assert item["metadata"]["namespace"] == NAMESPACE
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    vllm = engine("vllm")
    assert container["args"] == vllm.arguments(
        CANDIDATE.serving, model_path="/models", host="0.0.0.0", port=8000
    )
    assert container["image"] == str(CANDIDATE.runtime)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [v["image"]["reference"] for v in pod["volumes"] if "image" in v] == [
        str(CANDIDATE.model)
    ]
    assert pod["nodeSelector"] == SELECTOR
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert not {"lockgate.dev/model", "lockgate.dev/slot"} & labels.keys()
    assert service["spec"]["selector"].items() <= labels.items()


def test_the_cluster_ends_and_removes_what_a_killed_parent_leaves(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path
) -> None:
    with cluster.target(template, lifetime_seconds=600).serve(CANDIDATE, log_path=tmp_path / "l"):
        pass
    job, service = cluster.created
    spec = job["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (600, 0)
    assert spec["ttlSecondsAfterFinished"] > 0
    (owner,) = service["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == (
        "Job", job["metadata"]["name"], "uid-1",
    )  # fmt: skip


@pytest.mark.slow
def test_a_parent_that_is_killed_while_it_measures_is_followed_by_one_that_finds_the_place_clean(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path
) -> None:
    code = """
        import json, sys, time
        from pathlib import Path
        from kubernetes import client
        from lockgate.domain.candidates import Candidate
        from serving.kubernetes_job import KubernetesServer
        url, candidate, template, log = sys.argv[1:]
        server = KubernetesServer(
            json.loads(template), namespace="lockgate-tests", node_selector={}, address=url,
            poll_seconds=0.05, api=client.ApiClient(client.Configuration(host=url)),
        )
        with server.serve(Candidate.model_validate_json(candidate), log_path=Path(log)):
            print("up", flush=True)
            time.sleep(100)
    """
    arguments = [
        cluster.url,
        CANDIDATE.model_dump_json(),
        json.dumps(template),
        str(tmp_path / "l"),
    ]
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert cluster.objects, "nobody is left to remove them but the cluster"
    with cluster.target(template).serve(CANDIDATE, log_path=tmp_path / "second"):
        assert len([kind for kind, _ in cluster.objects if kind == "jobs"]) == 1
    assert not cluster.objects


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            {"phase": "Failed", "containerStatuses": [{
                "name": "vllm", "image": "i", "imageID": "i", "ready": False, "restartCount": 0,
                "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]},
            r"exit code 137 \(OOMKilled\)[\s\S]*out of memory",
        ),
        (
            {"phase": "Pending", "containerStatuses": [{
                "name": "vllm", "image": "i", "imageID": "i", "ready": False, "restartCount": 0,
                "state": {"waiting": {"reason": "InvalidImageName", "message": "no such name"}}}]},
            "InvalidImageName: no such name",
        ),
        (
            {"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/3 nodes are available"}]},
            "not ready in time: Unschedulable: 0/3 nodes",
        ),
    ],
)  # fmt: skip
def test_a_server_that_fails_is_an_error_with_its_own_words_and_is_removed(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path, status: dict[str, Any], said: str
) -> None:
    cluster.status = status
    server = cluster.target(template, ready_seconds=1)
    with (
        pytest.raises(ServingError, match=said) as caught,
        server.serve(CANDIDATE, log_path=tmp_path / "server.log"),
    ):
        pytest.fail("it was never up")
    assert caught.value.log == tmp_path / "server.log"
    assert not cluster.objects


def test_a_server_that_answers_nonsense_is_not_measured(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path
) -> None:
    cluster.answer = "!" * 60
    server = cluster.target(template)
    with (
        pytest.raises(ServingError, match="degenerate"),
        server.serve(CANDIDATE, log_path=tmp_path / "l"),
    ):
        pytest.fail("it was never up")
    assert not cluster.objects


def test_a_measurement_that_fails_keeps_the_servers_log_and_its_own_error(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path
) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        cluster.target(template).serve(CANDIDATE, log_path=tmp_path / "l"),
    ):
        cluster.forbidden = "DELETE /apis/batch"
        raise ZeroDivisionError
    assert "out of memory" in (tmp_path / "l").read_text()


def test_rights_that_lack_are_named_and_a_machine_that_cannot_be_named_is_not_measured_on(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path
) -> None:
    for call, said in (("POST /apis/batch", "create the Job"), ("GET /api/v1/nodes", "node-1 cannot be read")):  # fmt: skip
        cluster.forbidden = call
        server = cluster.target(template)
        with pytest.raises(ServingError, match=said), server.serve(CANDIDATE, log_path=tmp_path / "l"):  # fmt: skip
            pytest.fail("it was never up")
        assert not cluster.objects


def test_a_template_of_another_candidate_is_refused_before_anything_is_created(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path
) -> None:
    other = CANDIDATE.model_copy(
        update={"serving": ServingSpec(served_model_name="smol", args=("--enforce-eager", "--x"))}
    )
    with (
        pytest.raises(RenderingError, match="another candidate"),
        cluster.target(template).serve(other, log_path=tmp_path / "l"),
    ):
        pytest.fail("it was never up")
    assert not cluster.calls


def test_secrets_of_production_do_not_reach_a_test_server(
    cluster: Cluster, template: dict[str, Any], tmp_path: Path
) -> None:
    secret = {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "k", "key": "key"}}}
    given = json.loads(json.dumps(template))
    given["spec"]["containers"][0]["env"].append(secret)
    with cluster.target(given).serve(CANDIDATE, log_path=tmp_path / "l"):
        pass
    pod = cluster.created[0]["spec"]["template"]["spec"]
    assert "secret" not in json.dumps(pod).lower()
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "default"
