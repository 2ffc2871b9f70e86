"""The embedded cluster as flows and the command line see it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
from pydantic import ValidationError

from lockgate.adapters.metrics import ScrapeTarget
from lockgate.adapters.metrics import gateway_url as gateway_metrics
from lockgate.domain.cluster import ClusterStatus, SlotStatus
from lockgate.domain.digests import Digest
from lockgate.domain.policy import SigningPolicy
from lockgate.domain.release_state import ReleaseState, Slot
from lockgate.errors import ClusterError
from serving.ephemeral import log_tail
from serving.local.config import AgentConfig
from serving.local.envoy_config import cluster_name
from serving.local.launch import scratch_directory
from serving.local.records import AGENT_VARIABLE, CLUSTER_VARIABLE, SUPERVISOR_VARIABLE
from serving.ports import LOOPBACK, PortReservation
from serving.processes import ProcessId, end, marked, signal_leader

_HINT = "start it with `lockgate up`"


class LocalCluster:
    """One embedded cluster, in a directory of its own. Any number of these objects may speak to the same one."""

    def __init__(
        self,
        directory: Path,
        *,
        remote: str,
        store: str,
        signing: SigningPolicy,
        gates: Sequence[str],
        serving_python: Path,
        runtime_environment: Digest | None,
        snapshots: Path,
        environment: str = "local",
        branch: str = "main",
        plain_http: bool = False,
        poll_seconds: float = 1.0,
        cpu_pool: Path | None = None,
        gateway_ports: Mapping[str, int] | None = None,
        api_port: int = 0,
        agent_command: Sequence[str] = (sys.executable, "-m", "serving.local.agent"),
    ) -> None:
        self.directory = directory.absolute()
        self._agent_command = tuple(agent_command)
        self._settings = {
            "directory": self.directory,
            "remote": remote,
            "branch": branch,
            "environment": environment,
            "store": store,
            "plain_http": plain_http,
            "signing": signing,
            "gates": tuple(gates),
            "serving_python": serving_python,
            "runtime_environment": runtime_environment,
            "snapshots": snapshots.absolute(),
            "poll_seconds": poll_seconds,
            "cpu_pool": cpu_pool,
            "gateway_ports": dict(gateway_ports or {}),
            "api_port": api_port,
        }

    @property
    def log(self) -> Path:
        """The agent's log."""
        return self.directory / "agent.log"

    @property
    def access_log(self) -> Path:
        """The gateway's access log, JSON lines; for `lockgate.adapters.metrics.AccessLogReader`."""
        return self.directory / "gateway" / "access.log"

    def up(self, *, timeout_seconds: float = 60.0) -> ClusterStatus:
        """Starts the agent (which starts Envoy and adopts what runs). Running with the same settings: nothing is done.

        With other settings the agent is restarted; servers and gateway run on. `ClusterError` if it does not come up.
        """
        config = self._config()
        running = self._record()
        if running is not None:
            process, record = running
            if record.get("config") != config.content_digest():
                self._stop_agent(process)
            elif (status := self._wait_up(timeout_seconds)) is not None:
                return status
        self._require_ports(config)
        path = self.directory / "agent-config.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(config.model_dump_json(indent=1))
        temporary.rename(path)
        try:
            with self.log.open("ab") as log:
                handle = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "serving.local.supervise",
                        *self._agent_command,
                        str(path),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=self.directory,
                    env={
                        **os.environ,
                        AGENT_VARIABLE: config.cluster,
                        SUPERVISOR_VARIABLE: config.cluster,
                    },
                )
        except OSError as error:
            raise ClusterError(f"the agent cannot be started: {error}") from error
        status = self._wait_up(timeout_seconds, handle)
        if status is None:
            raise ClusterError(
                f"the agent ended (exit code {handle.poll()}):\n{log_tail(self.log)}", log=self.log
            )
        return status

    def down(self, *, timeout_seconds: float = 20.0) -> None:
        """Ends the agent, the gateway and all servers of this cluster, and nothing else. Logs and ports stay.

        Does not drain: take traffic away first if there is any. Down already: nothing is done.
        """
        identity = self._identity()
        if identity is None:
            return
        self._stop_supervisors()
        running = self._record()
        if running is not None:
            self._stop_agent(running[0])
        for process in marked(AGENT_VARIABLE, identity):
            end(process, term_seconds=5)
        leaders = [p for p in marked(CLUSTER_VARIABLE, identity) if os.getpgid(p.pid) == p.pid]
        for process in leaders:
            signal_leader(process, signal.SIGTERM)
        deadline = time.monotonic() + timeout_seconds
        for process in leaders:
            end(process, term_seconds=max(0.0, deadline - time.monotonic()))
        for process in marked(CLUSTER_VARIABLE, identity):
            end(process, term_seconds=0)
        pods = self.directory / "pods"
        for pod in sorted(pods.iterdir()) if pods.is_dir() else ():
            shutil.rmtree(scratch_directory(identity, pod.name), ignore_errors=True)
        shutil.rmtree(pods, ignore_errors=True)
        for record in (self.directory / "gateway" / "envoy.json", self.directory / "agent.json"):
            record.unlink(missing_ok=True)

    def running(self) -> bool:
        """Whether the agent runs (it may not have come up yet)."""
        return self._record() is not None

    def status(self) -> ClusterStatus:
        """What the agent says now. `ClusterError` if there is none, or it does not answer."""
        try:
            return ClusterStatus.model_validate(self._ask("GET", "/status", 10).json())
        except (ValueError, ValidationError) as error:
            raise ClusterError(f"the agent's status cannot be read: {error}") from error

    def slot_status(self, model: str, slot: Slot | str) -> SlotStatus | None:
        """None if the slot is empty, or the model unknown."""
        return self.status().slot(model, str(slot))

    def sync(
        self,
        commit: str | None = None,
        *,
        model: str | None = None,
        timeout_seconds: float = 10.0,
    ) -> bool:
        """Makes the agent look at the remote now. With `commit`: whether it, or a later one, was then in force in time:
        slots taken up, routes loaded by the gateway; of `model` only, or of every model."""
        query = {"timeout": f"{timeout_seconds:.3f}"}
        if commit is not None:
            query["commit"] = commit
        if model is not None:
            query["model"] = model
        answer = self._ask("POST", "/sync", timeout_seconds + 15, query)
        return bool(answer.json().get("applied"))

    def carry_out(self, commit: str, state: ReleaseState, *, timeout_seconds: float) -> bool:
        """See `serving.cluster.Cluster`. Decided by the agent's own record: it applied the commit itself."""
        return self.sync(commit, model=state.model, timeout_seconds=timeout_seconds)

    def gateway_url(self, model: str) -> str:
        """Base URL of the model's gateway, without `/v1`; the same for as long as the cluster's directory exists."""
        try:
            ports = json.loads((self.directory / "gateway" / "ports.json").read_bytes())
            return f"http://{LOOPBACK}:{ports[model]}"
        except (OSError, ValueError, LookupError) as error:
            raise ClusterError(
                f"the embedded cluster has no gateway for {model}: nothing of it was deployed yet",
                hint=_HINT,
            ) from error

    def scrape_targets(
        self, model: str, status: ClusterStatus | None = None
    ) -> tuple[ScrapeTarget, ...]:
        """Metrics endpoints of the model's slots: every server, and the gateway's view of each slot."""
        status = status or self.status()
        found = status.models.get(model)
        if found is None:
            return ()
        targets = []
        for name, slot in found.slots.items():
            for pod in slot.pods:
                if pod.state != "terminating":
                    url = f"{pod.url}/metrics" if pod.url is not None else None
                    targets.append(ScrapeTarget(pod.name, name, url))
            cluster = cluster_name(model, Slot(name))
            targets.append(
                ScrapeTarget(
                    f"gateway-{name}",
                    name,
                    gateway_metrics(status.gateway.admin_url, cluster),
                    cluster,
                )
            )
        return tuple(targets)

    def _require_ports(self, config: AgentConfig) -> None:
        """Before anything starts: a port of the user's choice that another program has is an error at once."""
        own = any(marked(CLUSTER_VARIABLE, config.cluster))
        for model, port in config.gateway_ports.items():
            if own:
                continue  # the gateway runs on and has them itself
            try:
                PortReservation.of(port).close()
            except OSError as error:
                raise ClusterError(
                    f"port {port} for the gateway of {model} cannot be used: {error}",
                    hint="free it, or choose another",
                ) from error

    def _config(self) -> AgentConfig:
        identity = self._identity()
        if identity is None:
            identity = uuid.uuid4().hex
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                (self.directory / "cluster-id").write_text(identity)
            except OSError as error:
                raise ClusterError(f"{self.directory} cannot be written: {error}") from error
        return AgentConfig.model_validate({"cluster": identity, **self._settings})

    def _identity(self) -> str | None:
        try:
            return (self.directory / "cluster-id").read_text().strip() or None
        except OSError:
            return None

    def _record(self) -> tuple[ProcessId, dict[str, object]] | None:
        """The running agent's process and record."""
        try:
            data = json.loads((self.directory / "agent.json").read_bytes())
            process = ProcessId(int(data["pid"]), int(data["start"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return (process, data) if process.alive() else None

    def _stop_agent(self, process: ProcessId) -> None:
        """The agent alone: what it started runs on."""
        self._stop_supervisors()
        end(process, term_seconds=10)

    def _stop_supervisors(self) -> None:
        """First of all, or an agent that has to be killed would be started again."""
        identity = self._identity()
        for supervisor in marked(SUPERVISOR_VARIABLE, identity) if identity is not None else ():
            end(supervisor, term_seconds=2)

    def _locked(self) -> bool:
        """Whether an agent lives, from its first moment to its last."""
        try:
            with (self.directory / "agent.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _wait_up(
        self, timeout_seconds: float, handle: subprocess.Popen[bytes] | None = None
    ) -> ClusterStatus | None:
        """Until an agent answers: the one started here, or another that was quicker. None if there is none any more."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            with contextlib.suppress(ClusterError):
                status = self.status()
                if status.gateway.pid is not None:
                    return status
            code = handle.poll() if handle is not None else None
            if (handle is None or code is not None) and not self._locked():
                return None
            if time.monotonic() >= deadline:
                raise ClusterError(
                    f"the embedded cluster did not come up within {timeout_seconds:.0f} s",
                    log=self.log,
                )
            time.sleep(0.1)

    def _ask(
        self, method: str, path: str, timeout: float, params: Mapping[str, str] | None = None
    ) -> httpx.Response:
        running = self._record()
        if running is None:
            raise ClusterError(
                "the embedded cluster's agent does not run", hint=_HINT, log=self.log
            )
        url = f"http://{LOOPBACK}:{running[1].get('api_port')}{path}"
        try:
            with httpx.Client(timeout=timeout, trust_env=False) as client:
                response = client.request(method, url, params=params)
                response.raise_for_status()
                return response
        except httpx.HTTPError as error:
            raise ClusterError(
                f"the embedded cluster's agent does not answer: {error!r}", hint=_HINT, log=self.log
            ) from error
