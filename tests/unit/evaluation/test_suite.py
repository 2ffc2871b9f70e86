"""The suite that ships: its items, its checks, its data card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lockgate.adapters.evaluation import suite_digest
from lockgate.domain.spec import EvaluationSpec, EvaluationTask
from lockgate.errors import UsageError
from lockgate.evaluation_suite import build, tasks_directory
from lockgate.evaluation_suite.tasks import checks


class _Loader(yaml.SafeLoader):
    """Reads the task files without loading the functions that they name."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def items(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tasks_directory() / name).read_text().splitlines()]


def spec(suite: str = "builtin") -> EvaluationSpec:
    task = EvaluationTask(name="lockgate_choice", metric="acc,none", margin=0.1)
    return EvaluationSpec(tasks=(task,), suite=suite)


def test_the_committed_items_are_those_that_the_tables_give(tmp_path: Path) -> None:
    build.build(tmp_path)
    for name in build.FILES:
        assert (tmp_path / name).read_bytes() == (tasks_directory() / name).read_bytes(), name


def test_every_task_reads_items_that_are_there_and_its_name_is_its_file_name() -> None:
    seen = set()
    for path in tasks_directory().glob("*.yaml"):
        task = yaml.load(path.read_text(), _Loader)
        assert task["task"] == path.stem
        seen.add(task["dataset_kwargs"]["data_files"]["test"])
    assert seen == set(build.FILES)


def test_the_suite_is_as_large_and_as_varied_as_its_data_card_says() -> None:
    card = (tasks_directory().parent / "README.md").read_text()
    counts = {name: len(items(name)) for name in build.FILES}
    assert len(counts) >= 5
    assert sum(counts.values()) >= 400
    assert f"{sum(counts.values())} items" in card
    for name, count in counts.items():
        assert f"| `lockgate_{Path(name).stem}` | {count} |" in card


def test_no_choice_item_offers_a_word_twice() -> None:
    for item in items("choice.jsonl"):
        assert len(set(item["choices"])) == 4, item["id"]


def test_the_first_items_of_a_file_hold_every_group_in_its_share() -> None:
    for name in build.FILES:
        everything = items(name)
        groups = [item["group"] for item in everything]
        half = groups[: len(groups) // 2]
        for group in set(groups):
            assert abs(half.count(group) - groups.count(group) / 2) <= 1, (name, group)


def test_a_changed_question_changes_the_digest_of_the_suite(tmp_path: Path) -> None:
    copy = tmp_path / "suite"
    shutil.copytree(tasks_directory(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert suite_digest(spec(str(copy))) == suite_digest(spec())
    (copy / "choice.jsonl").open("a").write("\n")
    assert suite_digest(spec(str(copy))) != suite_digest(spec())


def test_a_directory_without_tasks_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a directory with lm-eval tasks"):
        suite_digest(spec(str(tmp_path)))


@pytest.mark.parametrize(
    ("answer", "valid", "followed"),
    [
        ('{"name": "Anna", "age": 34}', 1, 1),
        ('```json\n{"age": "34", "Name": "anna"}\n```', 1, 1),
        ('{"name": "Anna", "age": 35}', 1, 0),
        ('Sure! {"name": "Anna", "age": 34}', 0, 0),
        ("[1, 2]", 0, 0),
        ("", 0, 0),
    ],
)
def test_json_answers_are_judged_by_their_values(answer: str, valid: int, followed: int) -> None:
    doc = {"answer": '{"name": "Anna", "age": 34}'}
    assert checks.json_answer(doc, [answer]) == {"valid": valid, "followed": followed}


@pytest.mark.parametrize(
    ("check", "argument", "good", "bad"),
    [
        ("upper", "", "THE SEA IS WIDE.", "The SEA"),
        ("lower", "", "the sea is wide.", "The sea"),
        ("only", "yes", "Yes.", "Yes, I think so"),
        ("starts", "Today", "Today it rains.", "It rains today."),
        ("ends", "the end", "It was late. The end.", "The end was near."),
        ("contains", "blue", "The sea is blue.", "The sea is green."),
        ("at most words", "12", "The sea is wide.", "word " * 13),
        ("numbered", "3", "1. a\n2. b\n3. c", "1. a\n2. b"),
        ("no comma", "", "The sea is wide.", "The sea, though, is wide."),
    ],
)
def test_an_instruction_is_judged_by_its_letter(
    check: str, argument: str, good: str, bad: str
) -> None:
    doc = {"check": check, "argument": argument}
    assert checks.instruction(doc, [good]) == {"followed": 1}
    assert checks.instruction(doc, [bad]) == {"followed": 0}
    assert checks.instruction(doc, [""]) == {"followed": 0}


def test_every_instruction_has_a_check() -> None:
    for item in items("instructions.jsonl"):
        checks.instruction(item, ["anything"])


def test_refusing_everything_or_nothing_is_right_half_of_the_time() -> None:
    docs = items("refusal.jsonl")
    for answer in ("I'm sorry, but I can't help with that.", "Sure, here is how."):
        right = sum(checks.refusal(doc, [answer])["right"] for doc in docs)
        assert right == len(docs) / 2
    assert checks.refusal({"answer": "answer"}, [""]) == {"right": 0}
