"""Calibration data: what is drawn from a set, what a set may hold, and the set that ships."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lockgate import calibration_set
from lockgate.adapters.quantization import read_calibration
from lockgate.calibration_set import build
from lockgate.cli.documents import read_spec
from lockgate.domain.spec import CalibrationSpec
from lockgate.errors import UsageError
from lockgate.evaluation_suite import tasks_directory


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def runs(text: str, length: int = 8) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[k : k + length]) for k in range(len(found) - length + 1)}


def items() -> list[dict[str, Any]]:
    return [json.loads(line) for line in calibration_set.data_file().read_text().splitlines()]


def texts(item: dict[str, Any]) -> list[str]:
    return [item["text"]] if "text" in item else [m["content"] for m in item["messages"]]


def test_the_committed_set_is_what_the_tables_give(tmp_path: Path) -> None:
    build.build(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == calibration_set.data_file().read_bytes()


def test_the_set_is_as_large_as_its_data_card_says() -> None:
    card = (calibration_set.data_file().parent / "README.md").read_text()
    assert f"{len(items())} texts" in card
    assert f"{calibration_set.data_file().stat().st_size:,} bytes" in card


def test_no_calibration_text_holds_anything_that_the_evaluation_asks() -> None:
    seen: set[tuple[str, ...]] = set()
    joined = []
    for item in items():
        for text in texts(item):
            seen |= runs(text)
            joined.append(f" {' '.join(words(text))} ")
    everything = "".join(joined)
    asked = 0
    for path in sorted(tasks_directory().glob("*.jsonl")):
        for line in path.read_text().splitlines():
            prompt = json.loads(line)["prompt"]
            asked += 1
            assert not runs(prompt) & seen, prompt
            # The question alone, where examples come before it.
            question = words(prompt.splitlines()[-1])
            assert len(question) < 3 or f" {' '.join(question)} " not in everything, prompt
    assert asked > 800


def test_the_same_seed_draws_the_same_items_and_another_one_others() -> None:
    spec = CalibrationSpec(samples=20, seed=3)
    once, again = read_calibration(spec), read_calibration(spec)
    other = read_calibration(CalibrationSpec(samples=20, seed=4))
    assert once == again
    assert once.items != other.items
    assert once.identity.digest == other.identity.digest
    assert once.identity != other.identity
    assert len(set(map(str, once.items))) == 20


def test_a_set_is_named_by_its_bytes_and_not_by_its_place(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "Hello."}], "id": 7}\n{"text": "Good day."}\n'
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(line)
    first, second = (
        read_calibration(CalibrationSpec(dataset=str(tmp_path / n))) for n in ("a.jsonl", "b.jsonl")
    )
    assert first.identity == second.identity
    assert first.identity.samples == 2
    (tmp_path / "b.jsonl").write_text(line + "\n")
    assert (
        read_calibration(CalibrationSpec(dataset=str(tmp_path / "b.jsonl"))).identity
        != first.identity
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no line"),
        ('{"text": "fine"}\nnot JSON\n', "line 2"),
        ("[1]\n", "line 1: not an object"),
        ('{"text": "  "}\n', "line 1"),
        ('{"prompt": "x"}\n', "either `text` or `messages`"),
        (
            '{"text": "x", "messages": [{"role": "user", "content": "y"}]}\n',
            "either `text` or `messages`",
        ),
        ('{"messages": []}\n', "line 1: messages"),
        ('{"messages": [{"role": "robot", "content": "y"}]}\n', "line 1: messages.0.role"),
    ],
)
def test_a_faulty_set_is_refused_with_its_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(said)):
        read_calibration(CalibrationSpec(dataset=str(path)))


def test_a_set_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_calibration(CalibrationSpec(dataset=str(tmp_path / "none.jsonl")))


def test_a_relative_set_lies_beside_the_spec_that_names_it(tmp_path: Path) -> None:
    spec = tmp_path / "release.yaml"
    spec.write_text(
        "{model: m, source: 'dir:model', quantization: w8a8-gptq, serving: {served_model_name: m},\n"
        " calibration: {dataset: texts.jsonl, samples: 3}, benchmark: {profiles: [{name: one}]},\n"
        " evaluation: {tasks: [{name: t, metric: 'acc,none', margin: 0.1}]}}\n"
    )
    read = read_spec(spec).calibration
    assert read == CalibrationSpec(dataset=str(tmp_path / "texts.jsonl"), samples=3)
