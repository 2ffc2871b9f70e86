"""A Git remote, a checkout of it, and an embedded cluster that follows it: what the tests of the cluster act on."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lockgate import environments
from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import ClusterStatus
from lockgate.domain.digests import Digest
from lockgate.domain.gitops import dump_state, state_path
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec
from lockgate.errors import EnvironmentMissing
from serving.local.cluster import LocalCluster
from serving.manifests import render

TEMPLATE = Path(__file__).parents[3] / "gitops_repo_template"


def _kubectl() -> Path:
    """Where every part of the product looks for it; the `kubectl` fixture says what is to be done where there is none."""
    try:
        return environments.kubectl_path()
    except EnvironmentMissing:
        return Path("/nonexistent/kubectl")


KUBECTL = _kubectl()
MODEL = "tiny"
CANARY = CanarySpec(steps=(CanaryStep(weight=5), CanaryStep(weight=50)))
RUNTIME = ImageRef.parse("lockgate.local/runtime@" + Digest.of_bytes(b"runtime"))


def candidate(name: str, **changes: Any) -> Candidate:
    """A candidate whose servers answer with `name`."""
    serving = {
        "served_model_name": "tiny",
        "pre_stop_seconds": 1,
        "drain_seconds": 20,
        **changes,
    }
    serving["env"] = {"TINY_NAME": name, **serving.get("env", {})}
    return Candidate(
        model=ImageRef.parse("lockgate.local/tiny@" + Digest.of_bytes(b"model")),
        runtime=RUNTIME,
        serving=ServingSpec.model_validate(serving),
    )


@dataclass
class World:
    """A remote, a checkout of it, and a cluster that follows it."""

    root: Path
    control: Path
    cluster: LocalCluster
    state: ReleaseState = field(
        default_factory=lambda: ReleaseState(model=MODEL, environment="local", canary=CANARY)
    )

    @property
    def checkout(self) -> Path:
        return self.root / "checkout"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    def occupant(self, name: str, **changes: Any) -> Occupant:
        # Not a bare path: the pod's volume at /tmp would take its place.
        env = {"TINY_CONTROL": f"dir:{self.control}"}
        return Occupant(
            candidate=candidate(name, env=env, **changes),
            release=f"release-{name}",
            evidence=Digest.of_bytes(name.encode()),
        )

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments],
            cwd=cwd or self.checkout,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def push(self, **changes: Any) -> str:
        """Commits and pushes a change of the release state with its manifests; the commit."""
        generation = self.state.generation + 1
        data = {**self.state.model_dump(), "generation": generation, **changes}
        self.state = ReleaseState.model_validate(data)
        files = render(self.state, self.checkout, kubectl=KUBECTL)
        directory = self.checkout / "models" / MODEL / "local" / "manifests"
        shutil.rmtree(directory, ignore_errors=True)
        for path, text in files.items():
            (self.checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (self.checkout / path).write_text(text)
        (self.checkout / state_path(MODEL, "local")).write_text(dump_state(self.state))
        return self.commit()

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", f"generation {self.state.generation}")
        self.git("push", "-q", "origin", "HEAD:main")
        return self.git("rev-parse", "HEAD")

    def apply(self, **changes: Any) -> str:
        """Pushes, and returns when the cluster says that it is in force."""
        commit = self.push(**changes)
        assert self.cluster.sync(commit, timeout_seconds=20), self.cluster.status()
        return commit

    def apply_model(self, **changes: Any) -> str:
        """The same for this model alone: another one may be in trouble."""
        commit = self.push(**changes)
        assert self.cluster.sync(commit, model=MODEL, timeout_seconds=20), self.cluster.status()
        return commit

    def edit_base(self, old: str, new: str) -> None:
        """Replaces a passage of the Deployment that every slot is made from; the next commit takes it along."""
        path = self.checkout / "apps" / "vllm" / "base" / "deployment.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def until(self, holds: Callable[[ClusterStatus], object], seconds: float = 40) -> ClusterStatus:
        deadline = time.monotonic() + seconds
        while True:
            status = self.cluster.status()
            if holds(status):
                return status
            assert time.monotonic() < deadline, f"not within {seconds} s: {status}"
            time.sleep(0.05)

    def until_ready(self, slot: str, candidate: Candidate | None = None) -> ClusterStatus:
        def ready(status: ClusterStatus) -> bool:
            found = status.slot(MODEL, slot)
            return (
                found is not None
                and found.settled
                and (candidate is None or found.candidate == candidate.digest)
            )

        return self.until(ready)

    def release_first(self, name: str = "one") -> Occupant:
        """A stable first release in slot a."""
        occupant = self.occupant(name)
        self.apply(phase=Phase.DEPLOYING, a=occupant)
        self.until_ready("a")
        self.apply(phase=Phase.STABLE, stable=Slot.A)
        return occupant

    def ask(self, slot: str | None = None, **body: Any) -> httpx.Response:
        headers = {"x-lockgate-slot": slot} if slot else {}
        return httpx.post(
            f"{self.cluster.gateway_url(MODEL)}/v1/completions",
            json={"prompt": "x", **body},
            headers=headers,
            timeout=30,
        )


class Traffic:
    """Requests without a pause, half of them streams; every one is read to its end and checked."""

    def __init__(self, url: str, *, workers: int = 4) -> None:
        self.url = url
        self.failed_at: list[tuple[float, str]] = []
        """Time at which a request began, and how it failed."""
        self.slots: list[tuple[float, str]] = []
        """Time at which a request began, and the slot that answered it."""
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(n % 2 == 0,)) for n in range(workers)
        ]

    @property
    def failures(self) -> list[str]:
        return [text for _, text in self.failed_at]

    def slots_since(self, begin: float) -> set[str]:
        """The slots that answered requests which began after `begin`."""
        return {slot for began, slot in list(self.slots) if began > begin}

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, stream: bool) -> None:
        body = {"prompt": "x", "stream": stream, "max_tokens": 8, "pause": 0.03}
        with httpx.Client(timeout=30) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    response = client.post(f"{self.url}/v1/completions", json=body)
                    whole = (
                        response.text.endswith("data: [DONE]\n\n")
                        if stream
                        else (response.json()["choices"][0]["finish_reason"] == "stop")
                    )
                    if response.status_code != 200 or not whole:
                        self.failed_at.append((began, f"{response.status_code} {response.text}"))
                    else:
                        self.slots.append((began, response.headers["x-lockgate-slot"]))
                except (httpx.HTTPError, ValueError, LookupError) as error:
                    self.failed_at.append((began, repr(error)))
                time.sleep(0.01)
