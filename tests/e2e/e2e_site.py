"""A workspace of the end-to-end tests, and ways to run `lockgate` in it as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lockgate.adapters.git import GitOpsRepository
from lockgate.adapters.signing import KeySigner
from lockgate.cli.demonstration import Demonstration
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.release_state import Occupant, ReleaseState
from lockgate.domain.rollout import start
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.domain.spec import CanarySpec, ServingSpec
from lockgate.settings import Settings
from tasks import driving
from tasks.bases import rendering_as_described, with_bases
from tasks.workspace import Workspace
from tests.published import publish

MODEL = "smollm2"

QUICK: dict[str, Any] = {
    "evaluation": {
        "tasks": [
            {"name": "lockgate_numbers", "metric": "exact_match,strip", "margin": 0.6, "floor": 0.2}
        ],
        "limit": 24,
    },
    "benchmark": {
        "profiles": [
            {
                "name": "short",
                "requests": 8,
                "prompt_tokens": 32,
                "output_tokens": 8,
                "concurrency": 1,
            }
        ],
        "margin": 9.0,
    },
}
"""Parts of a spec for tests that are not about the offline gates: little is measured, and much is allowed."""


SERVING: dict[str, Any] = {
    "served_model_name": MODEL,
    "max_model_len": 1024,
    "dtype": "bfloat16",
    "args": ["--enforce-eager"],
    "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
    "drain_seconds": 10,
    "pre_stop_seconds": 1,
}


@dataclass
class Site:
    """A workspace and its processes."""

    workspace: Path

    @property
    def settings(self) -> Settings:
        return Settings(workspace=self.workspace)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "LOCKGATE_WORKSPACE": str(self.workspace), "COLUMNS": "200"}

    def start(self, *arguments: str, log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """`lockgate …` in a session of its own, so that a test can kill it as a machine would."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "lockgate.cli", *arguments],
                env={**self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(
        self, *arguments: str, timeout: float = 900, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`lockgate …` to its end; its output is shown when the test fails."""
        done = subprocess.run(
            [sys.executable, "-m", "lockgate.cli", *arguments],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        print(f"$ lockgate {' '.join(arguments)}\n{done.stdout}{done.stderr}-> {done.returncode}")
        return done

    def repository(self) -> GitOpsRepository:
        repository = GitOpsRepository(
            str(self.settings.layout.remote), self.workspace / "checkouts" / "tests"
        )
        repository.sync()
        return repository

    def state(self) -> ReleaseState:
        return self.repository().read_state(MODEL, "local")

    def history(self) -> list[HistoryEntry]:
        """Oldest first."""
        entries = self.repository().history(MODEL, "local")
        return [entry for entry in reversed(entries) if entry.release is not None]

    def spec(self, number: int, name: str, **override: Any) -> Path:
        """A copy of one of the demonstration's specs, quick to measure, with parts replaced; mappings are merged one level
        deep."""
        data = yaml.safe_load((self.workspace / "specs" / f"release-{number}.yaml").read_text())
        for key, value in [*QUICK.items(), *override.items()]:
            data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
        path = self.workspace / "specs" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    def spec_of_stable(self) -> dict[str, Any]:
        """A spec that asks for what is stable now, which is always release 2's model: only its arguments may differ."""
        state = self.state()
        assert state.stable is not None
        occupant = state.occupant(state.stable)
        assert occupant is not None
        data = yaml.safe_load((self.workspace / "specs" / "release-2.yaml").read_text())
        return {**data, "serving": occupant.candidate.serving.to_data()}

    def prefect_url(self) -> str:
        return str(json.loads((self.settings.layout.prefect / "server.json").read_text())["url"])

    @contextmanager
    def running_traffic(self, rows: Path, rate: float = 2.5) -> Iterator[None]:
        """Requests to the gateway while the block runs; none of them may fail."""
        url = Workspace(self.settings).cluster().gateway_url(MODEL)
        driver = subprocess.Popen(
            [sys.executable, "-m", "serving.local.traffic", "--url", url, "--model", MODEL,
             "--rate", f"{rate:g}", "--seconds", "1800", "--out", str(rows)],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield
        finally:
            driver.terminate()
            driver.wait(180)
        failed = [row for row in read_rows(rows) if not row["ok"]]
        assert failed == []

    def traffic(self) -> list[dict[str, Any]]:
        """Rows of the demonstration's own driver."""
        return read_rows(self.workspace / "traffic" / "rows.jsonl")


def deploy(site: Site, serving: dict[str, Any], canary: dict[str, Any]) -> Occupant:
    """The commit that begins a release, as the release flow makes it once the gates have been passed."""
    workspace = Workspace(site.settings)
    candidate, evidence = publish(
        workspace.store,
        KeySigner(site.settings.layout.private_key),
        Demonstration(site.settings, 0, print).convert_model(),
        ServingSpec.model_validate({**SERVING, **serving}),
        decided_at=rfc3339(datetime.now(UTC)),
        described=lambda found: with_bases(workspace, MODEL, "local", found),
    )
    release = f"{MODEL}-{candidate.digest.short}"
    occupant = Occupant(candidate=candidate, release=release, evidence=evidence)
    driving.apply(
        workspace,
        MODEL,
        "local",
        lambda newest: start(
            newest, occupant, CanarySpec.model_validate(canary), datetime.now(UTC)
        ),
        rendering_as_described(workspace, candidate),
    )
    return occupant


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: float(row["start"]))


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer of `condition`; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(1)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


def prefect(environment: dict[str, str], *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def asked(environment: dict[str, str], what: str) -> list[dict[str, Any]]:
    """All that the server knows of one kind."""
    answer = httpx.post(f"{environment['PREFECT_API_URL']}/{what}/filter", json={}, timeout=30)
    answer.raise_for_status()
    return list(answer.json())
