"""The gateway of the embedded cluster: a real Envoy, told by files what to do, and asked whether it does it.

Changes are made so that no request meets a hole: endpoints and clusters appear before a route names them, and go after no
route does any more. "Loaded" is the data plane's own word: the worker answers a probe with the version of the route table
it uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from lockgate.domain.release_state import Slot
from lockgate.errors import ClusterError
from serving.local import envoy_config as xds
from serving.local.envoy_process import EnvoyProcess
from serving.ports import LOOPBACK, pick_stable

log = logging.getLogger(__name__)

_ACK_SECONDS = 3.0
_CHECK_SECONDS = 0.5
_POLL_SECONDS = 0.01
_LARGEST_LOG = 256 * 1024 * 1024


class Gateway:
    """Routes of all models of a cluster. One coroutine at a time may call `apply`."""

    def __init__(
        self,
        directory: Path,
        *,
        cluster: str,
        client: httpx.AsyncClient,
        wanted_ports: Mapping[str, int],
    ) -> None:
        self._files = directory / "xds"
        self._staging = directory / "staging"
        for part in ("lds", "cds", "rds", "eds"):
            (self._files / part).mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)
        self._client = client
        self._wanted_ports = wanted_ports
        self._ports_file = directory / "ports.json"
        self._ports: dict[str, int] = _read_json(self._ports_file)
        self.access_log = directory / "access.log"
        self.error: str | None = None
        self.loaded: dict[str, str] = {}
        """Version of the route table that each model's listener is known to use."""
        self._failing: dict[str, str] = {}
        admin = self._port("")
        self.admin_url = f"http://{LOOPBACK}:{admin}"
        for part in ("lds", "cds"):
            if not self._path(part, "all").exists():
                self._write(part, "all", xds.discovery([]))
        bootstrap = directory / "bootstrap.json"
        bootstrap.write_text(
            json.dumps(
                xds.bootstrap(
                    node=cluster,
                    admin_port=admin,
                    listeners=self._path("lds", "all"),
                    clusters=self._path("cds", "all"),
                ),
                indent=1,
            )
        )
        self.process = EnvoyProcess(directory, bootstrap, cluster=cluster, ended=self._ended)

    def port(self, model: str) -> int:
        """The model's gateway port, the same for as long as the cluster exists."""
        return self._port(model)

    async def apply(self, models: Mapping[str, xds.GatewayModel]) -> dict[str, str]:
        """Makes the gateway do this; returns when it does, with the models for which it does not, and why.

        `ClusterError` if it does not answer at all.
        """
        old, new = self._endpoints(), _endpoints(models)
        union = {
            name: tuple(sorted({*old.get(name, ()), *new.get(name, ())})) for name in {*old, *new}
        }
        added = {name for name in new if name not in old or set(new[name]) - set(old[name])}
        for name, addresses in union.items():
            self._put("eds", name, xds.discovery([xds.load_assignment(name, addresses)]))
        self._put_clusters(union)
        if added:
            await self._until("endpoints", lambda: self._shows({n: new[n] for n in added}))
            # A new server gets nothing before the gateway's own first look at it. One that is dead already is no reason to wait.
            with contextlib.suppress(ClusterError):
                await self._until(
                    "health",
                    lambda: self._shows({n: new[n] for n in added}, healthy=True),
                    _CHECK_SECONDS,
                )
        versions = {}
        for name, model in models.items():
            configuration, versions[name] = xds.versioned_route(model)
            self._put("rds", name, xds.discovery([configuration], versions[name]))
        listeners = [
            xds.listener(m, routes=self._path("rds", m.model), access_log=self.access_log)
            for _, m in sorted(models.items())
        ]
        self._put("lds", "all", xds.discovery(listeners))
        failed = await self._load_all(models, versions)
        # What an old route may still name stays.
        for name in failed:
            for slot in models[name].endpoints:
                cluster = xds.cluster_name(name, slot)
                new[cluster] = union[cluster]
        await self._withdraw(union, new)
        self._remove_files(set(models), set(new))
        self.loaded = {name: version for name, version in self.loaded.items() if name in models}
        self.error = self.process.error = None
        return failed

    async def _load_all(
        self, models: Mapping[str, xds.GatewayModel], versions: Mapping[str, str]
    ) -> dict[str, str]:
        """Waits for every model's routes; those that are not taken up, with the reason."""
        results = await asyncio.gather(
            *(self._load(model, versions[name]) for name, model in models.items()),
            return_exceptions=True,
        )
        failed = {}
        for name, result in zip(models, results, strict=True):
            if isinstance(result, ClusterError):
                failed[name] = result.message
            elif isinstance(result, BaseException):
                raise result
        if failed and len(failed) == len(models) and not await self._answers():
            raise ClusterError("the gateway does not answer", log=self.process.log)
        return failed

    async def _answers(self) -> bool:
        try:
            return (await self._client.get(f"{self.admin_url}/ready", timeout=1)).is_success
        except httpx.HTTPError:
            return False

    async def _withdraw(
        self,
        old: Mapping[str, tuple[xds.Address, ...]],
        new: Mapping[str, tuple[xds.Address, ...]],
    ) -> None:
        """Takes away endpoints and clusters that no route names any more."""
        gone = {name for name in old if old[name] != new.get(name)}
        for name in gone & set(new):
            self._put("eds", name, xds.discovery([xds.load_assignment(name, new[name])]))
        self._put_clusters(new)
        if gone:
            await self._until(
                "withdrawal", lambda: self._shows({n: new.get(n) for n in gone}, exactly=True)
            )

    def _remove_files(self, models: set[str], clusters: set[str]) -> None:
        for part, kept in (("rds", models), ("eds", clusters)):
            for path in (self._files / part).glob("*.json"):
                if path.stem not in kept:
                    path.unlink()

    def _ended(self) -> None:
        """Nothing is loaded by a gateway that is not there."""
        self.loaded.clear()

    async def _load(self, model: xds.GatewayModel, version: str) -> None:
        self.loaded.pop(model.model, None)
        try:
            await self._until(
                f"the routes of {model.model} on port {model.port}",
                lambda: self._uses(model, version),
                # What failed before is looked at again, but the other models do not wait for it.
                0.0 if self._failing.get(model.model) == version else _ACK_SECONDS,
            )
        except ClusterError as error:
            self._failing[model.model] = version
            if await self._listens(model) is False:
                raise ClusterError(
                    f"the gateway cannot listen on port {model.port} for {model.model}: "
                    "another program has it, or it may not be used",
                    hint="free the port, or give the model another one",
                    log=self.process.log,
                ) from error
            raise
        self.loaded[model.model] = version
        self._failing.pop(model.model, None)

    async def _listens(self, model: xds.GatewayModel) -> bool | None:
        """Whether Envoy has the model's listener; None if it does not say."""
        try:
            response = await self._client.get(
                f"{self.admin_url}/listeners", params={"format": "json"}, timeout=1
            )
            listeners = response.json().get("listener_statuses", [])
            return any(item["name"] == model.model for item in listeners)
        except (httpx.HTTPError, ValueError, LookupError):
            return None

    async def rotate_logs(self) -> None:
        """Starts a new access log when the present one is large; one old one is kept."""
        try:
            if not self.access_log.exists() or self.access_log.stat().st_size < _LARGEST_LOG:
                return
            self.access_log.rename(self.access_log.with_suffix(".log.1"))
            await self._client.post(f"{self.admin_url}/reopen_logs", timeout=1)
        except (OSError, httpx.HTTPError) as error:
            log.warning("the access log was not rotated: %s", error)

    def _put_clusters(self, names: Mapping[str, object]) -> None:
        clusters = [xds.cluster(n, endpoints=self._path("eds", n)) for n in sorted(names)]
        for name in sorted(names):
            model, _, place = name.rpartition("-")
            slot = Slot(place)
            clusters += [
                xds.failover_cluster(model, slot, other)
                for other in (Slot.A, Slot.B)
                if other is not slot and xds.cluster_name(model, other) in names
            ]
        self._put("cds", "all", xds.discovery(clusters))

    async def _until(
        self, what: str, holds: Callable[[], Awaitable[bool]], seconds: float = _ACK_SECONDS
    ) -> None:
        deadline = time.monotonic() + seconds
        answer = "it answers with something older"
        while True:
            try:
                if await holds():
                    return
            except (httpx.HTTPError, ValueError, LookupError) as error:
                answer = repr(error)
            if time.monotonic() >= deadline:
                raise ClusterError(
                    f"the gateway does not take up {what}: {answer}",
                    log=self.process.log,
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _uses(self, model: xds.GatewayModel, version: str) -> bool:
        response = await self._client.get(
            f"http://{LOOPBACK}:{model.port}/", headers={xds.PROBE_HEADER: "1"}, timeout=1
        )
        return response.status_code == 200 and response.text == version

    async def _shows(
        self,
        wanted: Mapping[str, tuple[xds.Address, ...] | None],
        *,
        exactly: bool = False,
        healthy: bool = False,
    ) -> bool:
        """Whether Envoy's clusters have (at least, or `exactly`) these endpoints, `healthy` ones; None: no such cluster."""
        response = await self._client.get(
            f"{self.admin_url}/clusters", params={"format": "json"}, timeout=1
        )
        shown: dict[str, set[xds.Address]] = {}
        for cluster in response.json().get("cluster_statuses", []):
            hosts = (
                h["address"]["socket_address"]
                for h in cluster.get("host_statuses", [])
                if not (healthy and h["health_status"].get("failed_active_health_check"))
            )
            shown[cluster["name"]] = {(h["address"], h["port_value"]) for h in hosts}
        for name, addresses in wanted.items():
            if addresses is None:
                if name in shown:
                    return False
                continue
            missing = set(addresses) - shown.get(name, set())
            if name not in shown or missing or (exactly and set(addresses) != shown[name]):
                return False
        return True

    def _endpoints(self) -> dict[str, tuple[xds.Address, ...]]:
        """As the files have it: also what an earlier agent wrote."""
        found = {}
        for cluster in _read_json(self._path("cds", "all")).get("resources", []):
            name = cluster["name"]
            if cluster.get("type") != "EDS":
                continue
            addresses = []
            for resource in _read_json(self._path("eds", name)).get("resources", []):
                for locality in resource["endpoints"]:
                    for item in locality["lb_endpoints"]:
                        address = item["endpoint"]["address"]["socket_address"]
                        addresses.append((address["address"], address["port_value"]))
            found[name] = tuple(sorted(addresses))
        return found

    def _path(self, part: str, name: str) -> Path:
        return self._files / part / f"{name}.json"

    def _put(self, part: str, name: str, content: Mapping[str, Any]) -> None:
        if _read_json(self._path(part, name)) != content:
            self._write(part, name, content)

    def _write(self, part: str, name: str, content: Mapping[str, Any]) -> None:
        """By rename into the directory: that is what Envoy watches for."""
        temporary = self._staging / f"{part}-{name}.json"
        temporary.write_text(json.dumps(content))
        temporary.rename(self._path(part, name))

    def _port(self, model: str) -> int:
        port = self._wanted_ports.get(model) or self._ports.get(model)
        if port is None:
            try:
                port = pick_stable()
            except OSError as error:
                raise ClusterError(f"no port for the gateway: {error}") from error
        if self._ports.get(model) != port:
            self._ports[model] = port
            temporary = self._ports_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._ports))
            temporary.rename(self._ports_file)
        return port


def _endpoints(models: Mapping[str, xds.GatewayModel]) -> dict[str, tuple[xds.Address, ...]]:
    return {
        xds.cluster_name(name, Slot(slot)): tuple(sorted(addresses))
        for name, model in models.items()
        for slot, addresses in model.endpoints.items()
    }


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none that can be read."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
