"""The four releases of the demonstration, under live traffic, and what must come of each."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lockgate import environments
from lockgate.adapters import quantization
from lockgate.adapters.git import EMBEDDED
from lockgate.adapters.report import render_table, write_report
from lockgate.cli.daemons import Daemon
from lockgate.cli.traffic import Traffic, with_seconds_to_zero
from lockgate.domain.spec import ReleaseSpec
from lockgate.domain.steps import ReleaseOutcome, ReleaseRequest
from lockgate.settings import Settings
from tasks.progress import as_fraction, progress
from tasks.reporting import gather, record_outcome, recorded_outcomes
from tasks.workspace import Workspace, initialise

BASE = Path(__file__).parent.parent / "demo" / "base.yaml"
TRAFFIC_SECONDS = 3600
LICENSE = Path(__file__).parent.parent / "demo" / "LICENSE-model"


@dataclass(frozen=True)
class Act:
    """One release: its title, what it changes in the base spec, and how it has to end."""

    title: str
    about: str
    override: dict[str, Any]
    expected: str
    refused_by: str | None = None


ACTS = (
    Act("bf16", "the first release takes all traffic", {}, "promoted"),
    Act(
        "int8",
        "W8A8 by llm-compressor: a canary in steps, then promoted",
        {"quantization": "w8a8-rtn"},
        "promoted",
    ),
    Act(
        "int8, one at a time",
        "the same weights with --max-num-seqs 1: passes offline, where one request comes after the other, "
        "and queues under real traffic",
        {"quantization": "w8a8-rtn", "serving": {"max_num_seqs": 1}},
        "rolled_back",
    ),
    Act(
        "int4",
        "W4A16: refused at the evaluation gate, never reaches Git",
        {"quantization": "w4a16-rtn"},
        "refused",
        refused_by="evaluation",
    ),
)


@dataclass
class Demonstration:
    """Runs the acts in a workspace. What an earlier run has finished is not done again."""

    settings: Settings
    rate: float
    say: Callable[..., None]
    outcomes: list[ReleaseOutcome] = field(default_factory=list)

    def run(self) -> bool:
        """All acts, table, log and report. Returns whether every act ended as it must and no request failed."""
        source = self.convert_model()
        for line in initialise(self.settings, layout=EMBEDDED, demo=True):
            self.say(line, markup=False, highlight=False)
        specs = self.write_specs(source)
        began = time.monotonic()
        unexpected = []
        try:
            for number, (act, path) in enumerate(zip(ACTS, specs, strict=True), 1):
                self.say(f"\n[bold]Release {number}: {act.title}[/] ({act.about})")
                outcome = self.perform(act, path)
                self.outcomes.append(outcome)
                self.say(f"→ {outcome.result}: {outcome.reason}", markup=False)
                unexpected += _unexpected(number, act, outcome)
                if number == 3:
                    self.stop_traffic()
        finally:
            self.stop_traffic()
        unexpected += self.conclude(time.monotonic() - began)
        for line in unexpected:
            self.say(f"[bold red]not as expected:[/] {line}")
        return not unexpected

    def convert_model(self) -> Path:
        """The GGUF file of the registry package as a standard Hugging Face directory. Done once a machine."""
        gguf = environments.demo_model_gguf()
        target = gguf.parent / "SmolLM2-135M-Instruct"
        if not (target / "config.json").exists():
            with progress("convert SmolLM2-135M-Instruct from GGUF") as report:
                quantization.convert_gguf(
                    environments.environment_python("quantization"), gguf, target,
                    card=quantization.ModelCard(
                        name="SmolLM2-135M-Instruct", license="apache-2.0",
                        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
                        license_text=LICENSE.read_text(),
                    ),
                    log=self.settings.layout.logs / "convert-model.log",
                    progress=as_fraction(report),
                )  # fmt: skip
        return target

    def write_specs(self, source: Path) -> list[Path]:
        """Full specs, one a release, for people who want to run or change them by hand."""
        directory = self.settings.layout.root / "specs"
        directory.mkdir(parents=True, exist_ok=True)
        base = yaml.safe_load(BASE.read_text())
        paths = []
        for number, act in enumerate(ACTS, 1):
            data = {**base, "source": f"dir:{source}"}
            for key, value in act.override.items():
                data[key] = {**base[key], **value} if isinstance(value, dict) else value
            path = directory / f"release-{number}.yaml"
            path.write_text(yaml.safe_dump(data, sort_keys=False))
            paths.append(path)
        return paths

    def perform(self, act: Act, path: Path) -> ReleaseOutcome:
        """One release, or what an earlier run says of it. Traffic runs as soon as something serves."""
        from flows.release import release
        from lockgate.cli.documents import read_spec

        spec = read_spec(path)
        done = self.done_before(act, spec)
        if done is not None:
            self.say("  done by an earlier run")
            return done
        Workspace(self.settings).start_cluster()
        if self.outcomes and act.expected != "refused":
            self.start_traffic(spec)
        outcome = release(ReleaseRequest(spec=spec, requested_by="demo"))
        record_outcome(self.settings, outcome, act.title)
        if not self.outcomes:
            self.start_traffic(spec)
        return outcome

    def done_before(self, act: Act, spec: ReleaseSpec) -> ReleaseOutcome | None:
        """The outcome of an earlier run, if it was the wanted one and Git has not forgotten it."""
        for recorded in recorded_outcomes(self.settings, spec.model, spec.environment):
            outcome = recorded.outcome
            if recorded.title == act.title and outcome.result == act.expected:
                same = outcome.recipe == spec.quantization
                if same and outcome.candidate.serving == spec.serving:
                    return outcome
        return None

    def start_traffic(self, spec: ReleaseSpec) -> None:
        """Requests to the gateway from now on, in a process of its own, as users would send them."""
        daemon = self._traffic()
        with daemon.exclusively():
            if daemon.process() is None:
                url = Workspace(self.settings).cluster().gateway_url(spec.model)
                daemon.start(
                    [sys.executable, "-m", "serving.local.traffic", "--url", url,
                     "--model", spec.serving.served_model_name, "--rate", f"{self.rate:g}",
                     "--seconds", str(TRAFFIC_SECONDS), "--out", str(self.rows),
                     "--beside", str(os.getpid())],
                    os.environ,
                )  # fmt: skip

    def stop_traffic(self) -> None:
        """End the driver: it finishes the requests in flight and writes the last rows."""
        self._traffic().stop()

    def _traffic(self) -> Daemon:
        return Daemon(self.settings.layout.root / "traffic", "traffic")

    @property
    def rows(self) -> Path:
        return self.settings.layout.root / "traffic" / "rows.jsonl"

    def conclude(self, seconds: float) -> list[str]:
        """Print the table, the Git log and the traffic's figures; write the report. Returns what was not as it must be."""
        spec = ReleaseSpec.model_validate(
            yaml.safe_load((self.settings.layout.root / "specs" / "release-1.yaml").read_text())
        )
        traffic = Traffic.read(self.rows)
        report = gather(
            Workspace(self.settings), spec.model, spec.environment, traffic=traffic.summary(),
            notes=(
                f"Demonstration: margins are wide ({spec.canary.margins.latency:.0%} for latencies), since two "
                "model servers share one small machine with everything else.",
            ),
        )  # fmt: skip
        report = with_seconds_to_zero(report, traffic)
        path = write_report(report, self.settings.layout.reports / "demo.html")
        self.say("")
        self.say(render_table(report.releases))
        self.say("\n[bold]Git log[/] (newest first)")
        for row in report.history:
            self.say(f"{row.commit[:9]} {row.subject}", markup=False, highlight=False)
            for key, value in row.trailers.items():
                self.say(f"          {key}: {value}", markup=False, highlight=False)
        self.say("")
        for line in traffic.lines():
            self.say(line, markup=False, highlight=False)
        for story in report.releases:
            if story.seconds_verdict_to_zero is not None:
                self.say(
                    f"{story.release}: last request to the candidate began "
                    f"{story.seconds_verdict_to_zero:+.2f} s after the verdict"
                )
        self.say(f"margins of this demonstration: {spec.canary.margins.to_data()}", markup=False)
        self.say(f"took {seconds:.0f} s")
        self.say(f"report: {path}", markup=False, highlight=False, soft_wrap=True)
        return traffic.faults()

    def forget(self) -> None:
        """Forget what was released, not what was made: the store with its finished steps stays."""
        self.down()
        layout = self.settings.layout
        for directory in (
            layout.remote, layout.cluster, layout.reports, layout.root / "checkouts",
            layout.root / "traces", layout.root / "traffic",
        ):  # fmt: skip
            shutil.rmtree(directory, ignore_errors=True)

    def down(self) -> None:
        """End traffic and cluster."""
        self.stop_traffic()
        Workspace(self.settings).embedded_cluster().down()


def _unexpected(number: int, act: Act, outcome: ReleaseOutcome) -> list[str]:
    """What is wrong with how an act ended."""
    lines = []
    if outcome.result != act.expected:
        lines.append(f"release {number} ended {outcome.result}, not {act.expected}")
    if act.refused_by is not None and not any(
        line.startswith(f"{act.refused_by}:") for line in outcome.gates.refusals
    ):
        lines.append(f"release {number} was not refused by the {act.refused_by} gate")
    return lines
