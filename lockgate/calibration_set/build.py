"""Writes the calibration set: `python -m lockgate.calibration_set.build [FILE]`.

Deterministic: the same tables give the same bytes. The order is mixed, so that any beginning holds every group.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockgate.calibration_set import data_file, tables

Item = dict[str, Any]


def _chat(name: str, group: str, *turns: str) -> Item:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return {"id": name, "group": group, "messages": messages}


def _explanations() -> Iterator[Item]:
    for number, (subject, said) in enumerate(tables.SUBJECTS.items()):
        asked = tables.ASKING[number % len(tables.ASKING)].format(subject)
        yield _chat(f"explained/{number}", "explained", asked, " ".join(said))
        listed = "\n".join(f"- {sentence}" for sentence in said)
        yield _chat(
            f"listed/{number}",
            "listed",
            f"Give me your notes on {subject} as bullet points.",
            listed,
        )
        yield _chat(
            f"asked-back/{number}", "asked back",
            f"I read something on {subject} but did not follow.", "Gladly. Where did you lose the thread?",
            f'At this: "{said[1]}"', f"Then let us begin one step earlier. {said[0]} {said[2]}",
            "And what follows from that in practice?", f"{said[3]} {said[4]}",
        )  # fmt: skip


def _essays() -> Iterator[Item]:
    subjects = list(tables.SUBJECTS.items())
    for number in range(24):
        chosen = random.Random(f"essay {number}").sample(subjects, 3)
        paragraphs = [f"On {subject}. {' '.join(said)}" for subject, said in chosen]
        yield {"id": f"essay/{number}", "group": "essay", "text": "\n\n".join(paragraphs)}


def _stories() -> Iterator[Item]:
    for number in range(40):
        drawn = random.Random(f"story {number}")
        place = drawn.choice(tables.PLACES)
        people = drawn.sample(tables.SCENES["who"], 4)
        deeds = drawn.sample(tables.SCENES["did"], 4)
        ends = drawn.sample(tables.SCENES["then"], 3)
        sentences = [f"It happened in {place}, in a year that nobody has written down."]
        for position, (who, did) in enumerate(zip(people, deeds, strict=True)):
            sentences.append(f"{who} {did}.".replace(",,", ","))
            if position < len(ends):
                sentences.append(ends[position])
        yield {"id": f"story/{number}", "group": "story", "text": " ".join(sentences)}


def _sums() -> Iterator[Item]:
    for number in range(24):
        drawn = random.Random(f"bill {number}")
        goods = drawn.choice(tables.GOODS)
        count, price, rebate = (
            drawn.randint(12, 88),
            drawn.randint(103, 987),
            drawn.randint(105, 995),
        )
        gross = count * price
        yield _chat(
            f"bill/{number}", "bill",
            f"We order {count} {goods} at {price} cents and get {rebate} cents off. What do we pay?",
            f"First multiply: {count} times {price} cents is {gross} cents. Then subtract the discount: {gross} less {rebate} "
            f"leaves {gross - rebate}. So the bill comes to {(gross - rebate) / 100:.2f}.",
        )  # fmt: skip


def _records() -> Iterator[Item]:
    for number in range(24):
        drawn = random.Random(f"record {number}")
        rows = [
            {"station": drawn.choice(tables.PLACES), "reading": round(drawn.uniform(-12, 31), 1),
             "checked_by": drawn.choice(tables.PEOPLE), "valid": drawn.random() > 0.2}
            for _ in range(4)
        ]  # fmt: skip
        if number % 3 == 0:
            text = json.dumps({"batch": 4000 + number, "rows": rows}, indent=2)
        elif number % 3 == 1:
            head = "| station | reading | checked by | valid |\n|---|---|---|---|\n"
            text = head + "\n".join(
                "| " + " | ".join(map(str, row.values())) + " |" for row in rows
            )
        else:
            text = "\n".join(
                [
                    "station;reading;checked_by;valid",
                    *(";".join(map(str, r.values())) for r in rows),
                ]
            )
        yield {"id": f"record/{number}", "group": "record", "text": text}


def _programs() -> Iterator[Item]:
    for number, (what, code) in enumerate(tables.PROGRAMS):
        yield _chat(
            f"program/{number}", "program", f"Show me {what}.", f"Here it is:\n\n```\n{code}```\n"
        )
        yield {"id": f"source/{number}", "group": "program", "text": code}


def _letters() -> Iterator[Item]:
    for number in range(32):
        drawn = random.Random(f"letter {number}")
        person, other = drawn.sample(tables.PEOPLE, 2)
        text = tables.LETTERS[number % len(tables.LETTERS)].format(
            person=person, other=other, place=drawn.choice(tables.PLACES),
            goods=drawn.choice(tables.GOODS), number=drawn.randint(14, 180),
        )  # fmt: skip
        yield {"id": f"letter/{number}", "group": "letter", "text": text}


def items() -> list[Item]:
    """Every item, mixed."""
    everything = [
        *_explanations(), *_essays(), *_stories(), *_sums(), *_records(), *_programs(), *_letters(),
    ]  # fmt: skip
    random.Random("order").shuffle(everything)
    return everything


def build(path: Path) -> None:
    """Write the set to `path`."""
    lines = [json.dumps(item, ensure_ascii=False, sort_keys=True) for item in items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else data_file())
