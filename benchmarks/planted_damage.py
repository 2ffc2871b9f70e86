"""Does the evaluation gate see damage? `python -m benchmarks.planted_damage MODEL WORK [--only NAME …]`.

Makes damaged copies of a model directory in WORK, evaluates them and the model on the tasks that should show the damage, and
prints the gate's decisions. What is in WORK already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_model import HEADER, evaluations, rows, score, spec_of
from lockgate import environments
from lockgate.supervision import log_tail, run_program

REFERENCE = "undamaged"
TASKS = {
    "plain": ["lockgate_numbers", "lockgate_choice"],
    "chat": ["lockgate_json", "lockgate_instructions", "lockgate_refusal"],
    "context": ["lockgate_long_context", "lockgate_numbers"],
}

NO_ROLES = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""A chat template that loses the special tokens: the model sees a text, not a turn."""


@dataclass(frozen=True)
class Damage:
    name: str
    shown_by: str
    """Key of `TASKS`."""
    make: Callable[[Path, Path], None]


def noise(level: float) -> Callable[[Path, Path], None]:
    """Weight noise of `level` standard deviations of each matrix."""

    def make(source: Path, target: Path) -> None:
        worker = Path(__file__).with_name("_damage_worker.py")
        python = environments.environment_python("quantization")
        log = target.with_suffix(".log")
        ended = run_program(
            [str(python), str(worker), str(source), str(target), str(level)],
            log=log,
            timeout=300,
        )
        if ended.code != 0:
            raise SystemExit(f"{target.name} could not be made:\n{log_tail(log)}")

    return make


def template(text: str) -> Callable[[Path, Path], None]:
    """Another chat template, the same weights."""

    def make(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        (target / "chat_template.jinja").write_text(text)

    return make


def config(**changes: object) -> Callable[[Path, Path], None]:
    """Other entries in `config.json`, the same weights."""

    def make(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        path = target / "config.json"
        read = json.loads(path.read_text())
        path.write_text(json.dumps({**read, **changes}))

    return make


def window(tokens: int) -> Callable[[Path, Path], None]:
    """Attention that reaches back `tokens` tokens only: the beginning of a longer context is cut off."""

    def make(source: Path, target: Path) -> None:
        layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
        config(sliding_window=tokens, layer_types=["sliding_attention"] * layers)(source, target)

    return make


DAMAGES = (
    *(Damage(f"noise-{level:.2f}", "plain", noise(level)) for level in (0.02, 0.05, 0.10, 0.20)),
    Damage("template-without-roles", "chat", template(NO_ROLES)),
    Damage("context-512", "context", window(512)),
    Damage("context-128", "context", window(128)),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--limit", type=int, default=160)
    parser.add_argument("--only", nargs="+", default=[d.name for d in DAMAGES], metavar="NAME")
    chosen = parser.parse_args(arguments)
    chosen.work.mkdir(parents=True, exist_ok=True)
    for damage in DAMAGES:
        if damage.name not in chosen.only:
            continue
        asked = spec_of(TASKS[damage.shown_by], chosen.limit)
        score(chosen.model, asked, chosen.work / REFERENCE / damage.shown_by)
        place = chosen.work / damage.name
        if not evaluations(place / "scores"):
            shutil.rmtree(place / "model", ignore_errors=True)
            place.mkdir(exist_ok=True)
            damage.make(chosen.model, place / "model")
            score(place / "model", asked, place / "scores")
            shutil.rmtree(place / "model")
    print(HEADER)
    for damage in DAMAGES:
        for stable in evaluations(chosen.work / REFERENCE / damage.shown_by):
            for evidence in evaluations(chosen.work / damage.name / "scores"):
                print("\n".join(rows(damage.name, evidence, stable)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
