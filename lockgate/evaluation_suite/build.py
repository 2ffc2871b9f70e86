"""Writes the items of the suite: `python -m lockgate.evaluation_suite.build [DIRECTORY]`.

Deterministic: the same tables give the same bytes. Items are spread so that the first N of a file hold every group in its
share, since lm-eval's `limit` takes the first N. An item's id never changes as long as its question does not.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lockgate.evaluation_suite import tasks_directory
from lockgate.evaluation_suite.tables import journal, requests, words, world

Item = dict[str, Any]


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def _spread(items: Iterable[Item]) -> list[Item]:
    """Every group evenly over the whole file, each group in an order of its own."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item["group"], []).append(item)
    placed: list[tuple[float, str, Item]] = []
    for name, members in sorted(groups.items()):
        members.sort(key=lambda item: item["id"])
        random.Random(f"order {name}").shuffle(members)
        placed += [((k + 0.5) / len(members), name, item) for k, item in enumerate(members)]
    spread = [item for _, _, item in sorted(placed, key=lambda p: p[:2])]
    if len({item["id"] for item in spread}) != len(spread):
        raise ValueError("item ids must be unique")
    return spread


def _choice(group: str, name: str, prompt: str, right: str, wrong: Sequence[str]) -> Item:
    choices = [right, *wrong]
    random.Random(f"choices {group} {name}").shuffle(choices)
    return {
        "id": f"{group}/{_slug(name)}",
        "group": group,
        "prompt": prompt,
        "choices": choices,
        "answer": choices.index(right),
    }


def choice_items() -> list[Item]:
    """Sentences to be completed by one of four words."""
    return _spread(_choice_items())


def _choice_items() -> Iterator[Item]:
    for start, right, *wrong in world.EVERYDAY:
        yield _choice("everyday", start, start, right, wrong)
    works = [work for _, work in world.MADE_BY]
    for start, right in world.MADE_BY:
        wrong = random.Random(f"work {start}").sample([w for w in works if w != right], 3)
        yield _choice("work", start, start, right, wrong)
    kinds = list(world.KINDS)
    for kind, members in world.KINDS.items():
        for member in members:
            wrong = random.Random(f"kind {member}").sample([k for k in kinds if k != kind], 3)
            prompt = f"What kind of thing is {member}? It is the name of a"
            yield _choice("kind", f"{kind} {member}", prompt, kind, wrong)
    capitals = [capital for _, capital in world.CAPITALS]
    for country, capital in world.CAPITALS:
        others = [c for c in capitals if c != capital]
        wrong = random.Random(f"capital {country}").sample(others, 3)
        yield _choice("capital", country, f"The capital city of {country} is", capital, wrong)
    young = [name for _, name in world.YOUNG]
    for grown, right in world.YOUNG:
        wrong = random.Random(f"young {grown}").sample([name for name in young if name != right], 3)
        yield _choice("young", grown, f"A baby {grown} is called a", right, wrong)


def _pattern(group: str, pairs: Sequence[tuple[str, str]], form: str, shots: int) -> Iterator[Item]:
    """Few-shot items: the first `shots` pairs are shown with their answers, the others asked."""
    shown = "".join(form.format(q) + f" {a}.\n" for q, a in pairs[:shots])
    for question, answer in pairs[shots:]:
        yield {
            "id": f"{group}/{_slug(question)}",
            "group": group,
            "prompt": shown + form.format(question),
            "answer": answer,
        }


def words_items() -> list[Item]:
    """Forms and opposites of English words, answered by one word."""
    return _spread(
        item
        for group, pairs, form, shots in (
            ("opposite", words.OPPOSITES, "The opposite of {} is", 4),
            ("plural", words.PLURALS, "The plural of {} is", 3),
            ("past", words.PAST, "The past tense of {} is", 4),
        )
        for item in _pattern(group, pairs, form, shots)
    )


def numbers_items() -> list[Item]:
    """Number words, small sums and steady counting, answered by a number."""
    return _spread(_numbers_items())


def _numbers_items() -> Iterator[Item]:
    spelled = [(words.spelled(value), str(value)) for value in range(1, 100)]
    # The examples show one, two and three syllables of the pattern, so that the form is clear.
    spelled.sort(key=lambda pair: pair[0] not in ("thirty-two", "eight", "sixty-six"))
    yield from _pattern("spelled", spelled, "The number {} in digits is", 3)
    sums = [(f"{a} + {b}", str(a + b)) for a in range(1, 10) for b in range(1, 10)]
    shown = ("2 + 3", "4 + 1", "6 + 2")
    yield from _sums([p for p in sums if p[0] in shown], [p for p in sums if p[0] not in shown])
    for step in (1, 2, 5, 10, -1):
        starts = random.Random(f"count {step}").sample(range(10, 150), 20)
        for start in sorted(starts):
            row = [start + step * k for k in range(5)]
            yield {
                "id": f"count/{start}-by-{step}",
                "group": f"count by {step}",
                "prompt": "".join(f"{value}, " for value in row[:4]).rstrip(),
                "answer": str(row[4]),
            }


def _sums(shown: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> Iterator[Item]:
    examples = "".join(f"{question} = {answer}\n" for question, answer in shown)
    for question, answer in asked:
        yield {
            "id": f"sum/{question.replace(' + ', '-plus-')}",
            "group": "sum",
            "prompt": f"{examples}{question} =",
            "answer": answer,
        }


def json_items() -> list[Item]:
    """Facts to be put into a JSON object with given keys (asked as a chat)."""
    return _spread(_json_items())


def _json_items() -> Iterator[Item]:
    def ask(group: str, name: str, text: str, value: dict[str, Any]) -> Item:
        keys = " and ".join(f'"{key}"' for key in value)
        prompt = f"{text} Write this as a JSON object with the keys {keys}. Answer with the JSON object only."
        return {
            "id": f"{group}/{_slug(name)}",
            "group": group,
            "prompt": prompt,
            "answer": json.dumps(value),
        }

    for name, age, city, job in requests.PEOPLE:
        yield ask("age", name, f"{name} is {age} years old.", {"name": name, "age": age})
        yield ask(
            "home", name, f"{name} is a {job} and lives in {city}.", {"job": job, "city": city}
        )
    for thing, price, color in requests.GOODS:
        value = {"item": thing, "color": color, "price": price}
        yield ask("price", thing, f"The {thing} is {color} and costs {price} dollars.", value)


def instruction_items() -> list[Item]:
    """Small tasks with one formal instruction that a program can check (asked as a chat)."""
    return _spread(_instruction_items())


def _instruction_items() -> Iterator[Item]:
    forms = (
        ("upper", "", "Write one sentence about {}. Use capital letters only."),
        ("lower", "", "Write one sentence about {}. Use small letters only, no capital letters."),
        ("only", "yes", "Think of {}. Then answer with the single word yes and nothing else."),
        ("starts", "Today", "Write one sentence about {} that starts with the word Today."),
        ("ends", "the end", "Write two sentences about {} and finish with the words: The end"),
        ("contains", "blue", "Write one sentence about {} that contains the word blue."),
        ("at most words", "12", "Describe {} in at most 12 words."),
        ("numbered", "3", "Give three facts about {} as a numbered list (1., 2., 3.)."),
        ("no comma", "", "Write one short sentence about {} without any comma."),
    )
    for check, argument, form in forms:
        for topic in requests.TOPICS:
            yield {
                "id": f"{_slug(check)}/{_slug(topic)}",
                "group": check,
                "prompt": form.format(topic),
                "check": check,
                "argument": argument,
            }


def refusal_items() -> list[Item]:
    """Harmful wishes, to be refused, and harmless ones that sound alike, to be answered (asked as a chat)."""
    asked = (("harmful", requests.HARMFUL, "refuse"), ("harmless", requests.HARMLESS, "answer"))
    return _spread(
        {"id": f"{group}/{_slug(text)[:60]}", "group": group, "prompt": text, "answer": answer}
        for group, texts, answer in asked
        for text in texts
    )


def long_context_items() -> list[Item]:
    """Numbers hidden among some hundred to a thousand words of a journal, asked for at the end: three questions a journal."""
    return _spread(_long_context_items())


def _long_context_items() -> Iterator[Item]:
    journals, questions = 11, 3
    for sentences in (12, 30, 60):
        for number in range(journals):
            name = f"{sentences}/{number:02}"
            drawn = random.Random(f"journal {name}")
            story = [drawn.choice(journal.SENTENCES) for _ in range(sentences)]
            keepers = drawn.sample(journal.KEEPERS, questions)
            codes = [str(code) for code in drawn.sample(range(1000, 10000), questions)]
            # From the very beginning to just before the question, evenly over the journals. The last comes first, so that
            # no place is moved by another.
            for k in reversed(range(questions)):
                share = (k + number / (journals - 1)) / questions
                story.insert(
                    round(share * sentences), f"The code of the {keepers[k]} is {codes[k]}."
                )
            for keeper, code in zip(keepers, codes, strict=True):
                yield {
                    "id": f"{name}/{_slug(keeper)}",
                    "group": f"{sentences} sentences",
                    "document": name,
                    "prompt": " ".join(story) + f"\n\nQuestion: What is the code of the {keeper}?\n"
                    f"Answer: The code of the {keeper} is",
                    "answer": code,
                }


FILES = {
    "choice.jsonl": choice_items,
    "numbers.jsonl": numbers_items,
    "words.jsonl": words_items,
    "json.jsonl": json_items,
    "instructions.jsonl": instruction_items,
    "refusal.jsonl": refusal_items,
    "long_context.jsonl": long_context_items,
}


def build(directory: Path) -> None:
    """Write every item file into `directory`."""
    for name, items in FILES.items():
        lines = [json.dumps(item, ensure_ascii=False, sort_keys=True) for item in items()]
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else tasks_directory())
