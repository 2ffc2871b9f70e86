"""Prefect's own Kubernetes worker takes flow runs of a real server and makes Jobs of them, with the rights of the GitOps repository."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lockgate.adapters.git import Layout
from scripts.make_access_tables import rendered, rights
from tests.integration.pools.conftest import AUTH, PrefectServer
from tests.integration.pools.kubernetes_api import KubernetesApi, Rights
from tests.integration.tracking.test_triggers import wait_until
from tests.unit.house.prefect_jobs import ROOT, as_stored, job, restricted_faults

RUN = "prefect.io/flow-run-id"
PATIENCE = 180
"""Seconds: a server on SQLite and two workers on a machine that has other things to do."""
CHARTS = ROOT / "gitops_repo_template" / "charts"


@pytest.fixture(scope="module")
def given(kubectl: Path) -> dict[str, Rights]:
    """What the rendered roles and bindings give each worker, by its namespace."""
    found = rights(rendered(Layout(("production",), "argocd", "eks"), kubectl))
    given: dict[str, Rights] = {"lockgate": {}, "lockgate-sign": {}}
    for (who, place, what), verbs in found.items():
        namespace, _, account = who.partition("/")
        if account == "lockgate-worker":
            given[namespace][place, what] = set(verbs)
    return given


@contextmanager
def worker(
    server: PrefectServer, chart: str, api: KubernetesApi, tmp_path: Path
) -> Iterator[Callable[[], str]]:
    """The worker of a chart, with the arguments and settings that the chart makes of its values; yields its log."""
    config = yaml.safe_load((CHARTS / f"{chart}.yaml").read_text())["worker"]
    values, auth = config["config"], config["selfHostedServerApiConfig"]["basicAuth"]
    name = "PREFECT_INTEGRATIONS_KUBERNETES"
    settings = {
        "KUBECONFIG": str(api.kubeconfig(tmp_path / f"{chart}.kubeconfig")),
        "PREFECT_HOME": str(tmp_path / chart),
        f"{name}_OBSERVER_NAMESPACES": values["jobNamespace"],
        f"{name}_WORKER_API_AUTH_STRING_SECRET_NAME": auth["existingSecret"],
        f"{name}_WORKER_API_AUTH_STRING_SECRET_KEY": "auth-string",
        "PREFECT_WORKER_QUERY_SECONDS": "1",  # quicker than in a cluster
    }
    queues = [part for queue in values["workQueues"] for part in ("--work-queue", queue)]
    log = tmp_path / f"{chart}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--type", values["type"],
             "--pool", values["workPool"], *queues, "--install-policy", values["installPolicy"]],
            env=server.environment | settings, cwd=tmp_path, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield log.read_text
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def of(api: KubernetesApi, namespace: str, run: str) -> dict[str, Any]:
    """The one Job of a flow run, once it is there."""

    def made() -> list[dict[str, Any]]:
        return [j for j in api.jobs(namespace) if j["metadata"]["labels"][RUN] == run]

    wait_until(lambda: bool(made()), PATIENCE, f"a Job in {namespace}")
    (found,) = made()
    return found


def without_run(manifest: dict[str, Any]) -> dict[str, Any]:
    """The Job but for what is of this run, and of Prefect's own book-keeping."""
    kept = as_stored(manifest)
    kept["metadata"] = {"namespace": kept["metadata"]["namespace"]}
    pod = kept["spec"]["template"]
    labels = pod["metadata"]["labels"]
    pod["metadata"] = {k: v for k, v in labels.items() if k.startswith("lockgate.dev/")}
    pod["spec"]["containers"][0].pop("env")
    return kept


def test_a_run_becomes_one_job_with_exactly_the_rights_of_the_role_and_its_end_is_seen(
    server: PrefectServer, given: dict[str, Rights], tmp_path: Path
) -> None:
    signing, measured, prepared = (server.start(name) for name in ("sign", "measure", "prepare"))
    runs = {signing: "sign", measured: "measure", prepared: "prepare"}
    here, there = KubernetesApi(given["lockgate"]), KubernetesApi(given["lockgate-sign"])
    try:
        with worker(server, "prefect-worker", here, tmp_path) as log, worker(
            server, "prefect-worker-sign", there, tmp_path
        ) as sign_log:  # fmt: skip
            made = {run: of(here, "lockgate", run) for run in (measured, prepared)}
            made[signing] = of(there, "lockgate-sign", signing)
            # The pod of one did not get as far as its flow run; the Jobs of the others are taken away while they run.
            here.fail(made[measured])
            wait_until(
                lambda: "get" in here.asked.get(("lockgate", "pods/log"), ()), PATIENCE, "its log"
            )
            for run in runs:
                server.force(run, "RUNNING")
            here.remove("lockgate", "jobs", made[prepared]["metadata"]["name"])
            there.remove("lockgate-sign", "jobs", made[signing]["metadata"]["name"])
            for run in runs:
                wait_until(lambda run=run: server.state(run) == "Crashed", PATIENCE, runs[run])
            said = log() + sign_log()
    finally:
        here.close()
        there.close()
    for run, name in runs.items():
        # One Job a run, by the worker of its queue.
        (sent,) = [b for b in here.posted + there.posted if b["metadata"]["labels"][RUN] == run]
        assert without_run(sent) == without_run(job(name))
        kubernetes_validate.validate(as_stored(sent), "1.35", strict=True)
        assert restricted_faults(sent["spec"]["template"]["spec"]) == []
        environment = {
            e["name"]: e for e in sent["spec"]["template"]["spec"]["containers"][0]["env"]
        }
        assert environment["PREFECT__FLOW_RUN_ID"]["value"] == run
        reference = {"secretKeyRef": {"name": "prefect-auth", "key": "auth-string"}}
        assert environment["PREFECT_API_AUTH_STRING"]["valueFrom"] == reference
    assert AUTH not in json.dumps([here.posted, there.posted])
    assert (here.refused, there.refused) == ([], []), said
    # Nothing is given that is not used: between them they did everything that a worker does.
    used = {what: verbs | there.asked.get(("lockgate-sign", what), set()) for (_, what), verbs in here.asked.items()}  # fmt: skip
    for namespace, rights_of in given.items():
        assert {what: verbs for (_, what), verbs in rights_of.items()} == used
        assert {place for place, _ in rights_of} == {namespace}
