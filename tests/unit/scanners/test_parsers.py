"""Every parser of ours answers any bytes: with problems, never with an exception, in bounded time and memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.scanning import (
    gguf,
    hub_status,
    json_shape,
    licenses,
    model_config,
    modelaudit_report,
    names,
    safetensors,
    secrets,
    templates,
    trivy_report,
)
from lockgate.domain.scanning.content import Kind, is_pickle, sniff
from lockgate.domain.sources import Source
from tests.amounts import examples
from tests.unit.scanners import models
from tests.unit.scanners.adversarial import CASES

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
_TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "NOPE"]) | _JSON,
        "shape": st.lists(st.integers(-2, 5), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-2, 64), max_size=3) | _JSON,
    }
)


@settings(max_examples=examples(150), deadline=None)
@given(st.dictionaries(st.text(max_size=4), _TENSOR | _JSON, max_size=4), st.integers(0, 200))
def test_a_safetensors_header_of_any_form_is_answered(header: dict[str, Any], size: int) -> None:
    text = json.dumps(header).encode()
    problems = safetensors.check_header(text, 8 + len(text) + size)
    if not problems:
        # Accepted: then the tensors cover the data exactly.
        spans = [v["data_offsets"] for k, v in header.items() if k != "__metadata__"]
        assert sum(end - begin for begin, end in spans) == size


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["U8", "BF16", "F32"]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_a_safetensors_file_as_its_library_writes_it_is_accepted(
    tensors: list[tuple[str, list[int]]],
) -> None:
    width = {"U8": 1, "BF16": 2, "F32": 4}
    built = {}
    for number, (dtype, shape) in enumerate(tensors):
        count = width[dtype]
        for dimension in shape:
            count *= dimension
        built[f"t{number}"] = (dtype, shape, bytes(count))
    data = models.safetensors(built)
    length = safetensors.header_length(data[:8], len(data))
    assert isinstance(length, int)
    assert safetensors.check_header(data[8 : 8 + length], len(data)) == []


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=300))
def test_gguf_of_any_bytes_is_answered(data: bytes) -> None:
    for window in (data, b"GGUF" + struct.pack("<I", 3) + data):
        facts = gguf.read_gguf(window, len(window))
        assert facts.problems or window.startswith(b"GGUF")


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_have_a_kind_and_json_and_front_matter_an_answer(data: bytes) -> None:
    assert sniff(data, data) in Kind
    value, problems = json_shape.parse(data)
    assert value is None or not problems
    licenses.front_matter("---\n" + data.decode("latin-1") + "\n---\n")


@settings(max_examples=examples(200), deadline=None)
@given(_JSON)
def test_sound_json_is_taken_as_it_is(value: Any) -> None:
    text = json.dumps(value)
    parsed, problems = json_shape.parse(text.encode())
    assert problems == []
    assert json.dumps(parsed) == text


_PIECES = st.sampled_from(
    ["{{", "}}", "{%", "%}", " for x in y ", " endfor ", "messages", "|", "attr", "(", ")", "[", "]",
     "'__class__'", ".", "_x", " if ", " endif ", "~", "range(3)", "{#", "-", "1", " "]
)  # fmt: skip


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(_PIECES, max_size=20).map("".join))
def test_a_template_of_any_pieces_is_answered(source: str) -> None:
    templates.check_template(source)


def test_a_template_nested_without_end_is_answered() -> None:
    problems = templates.check_template("{{ " + "(" * 50_000 + ")" * 50_000 + " }}")
    assert {p.rule for p in problems} <= {"template-bomb", "template-syntax"}
    assert problems


def test_yaml_aliases_in_a_model_card_are_not_followed() -> None:
    bomb = "a: &a [x, x]\n" + "\n".join(f"b{n}: &b{n} [*a, *a]" for n in range(3))
    front, problems = licenses.front_matter(f"---\n{bomb}\nlicense: mit\n---\n")
    assert front == {}
    assert problems


def test_text_that_only_looks_like_opcodes_is_no_pickle() -> None:
    for text in (b"(see below)\nmodule\nname\n", b"cats\nand\ndogs.\n", b"I am\nhere\n.\n", b""):
        assert not is_pickle(text)


_KEYS = st.sampled_from(
    ["auto_map", "chat_template", ".chat_template", "", "a", "a.chat_template", "architectures", "model_type", "hidden_size", "weight_map", "type",
     "model", "vocab", "added_tokens", "id", "Regex", "license", "_target_"]
)  # fmt: skip
_CONFIGURATION = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=16,
)
_NAMES = st.sampled_from(
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "modules.json",
        "x.index.json",
        "a.json",
    ]
)


@settings(max_examples=examples(200))
@given(_NAMES, _CONFIGURATION)
def test_a_configuration_of_any_form_is_answered(name: str, value: Any) -> None:
    model_config.check_json(name, value, {name})
    model_config.templates_in(value)


def _templates(value: Any) -> set[str]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = value.get("chat_template") if isinstance(value, dict) else None
    named = {own} if isinstance(own, str) and own.strip() else set()
    return named.union(*map(_templates, parts))


@settings(max_examples=examples(200))
@given(_CONFIGURATION)
def test_no_template_is_hidden_by_another_whatever_the_keys_above_it(value: Any) -> None:
    assert _templates(value) <= {text for _, text in model_config.templates_in(value)}


def _holds_remote_code(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_remote_code, value))
    if not isinstance(value, dict):
        return False
    return value.get("auto_map") not in (None, False, {}, []) or any(
        map(_holds_remote_code, value.values())
    )


@settings(max_examples=examples(200))
@given(_CONFIGURATION)
def test_remote_code_is_found_wherever_it_stands(value: Any) -> None:
    rules = {problem.rule for problem in model_config.check_json("a.json", value, ())}
    if _holds_remote_code(value):
        assert "remote-code" in rules


@settings(max_examples=examples(200))
@given(st.dictionaries(st.text(max_size=12), st.none(), max_size=6))
def test_names_of_any_form_are_answered(paths: dict[str, None]) -> None:
    names.check_names([path for path in paths if path.isprintable()], WeightScanPolicy())


@settings(max_examples=examples(200))
@given(st.binary(max_size=200), st.text(max_size=200))
def test_any_text_is_searched_for_secrets_tags_and_licenses(data: bytes, text: str) -> None:
    secrets.check_secrets(data)
    model_config.check_yaml(data)
    licenses.recognise(text)
    licenses.check_licenses({"a": [text]}, {"LICENSE": text}, WeightScanPolicy())
    model_config.endless(text)


_CARDS = st.lists(
    st.sampled_from(
        ["license", ":", " ", "\n", "- ", "[", "]", "{", "}", "!!bool", "!!int ''", "&a", "*a", "|", "? ",
         "'", "mit", "!!python/object:os.system", "<<", "2026-13-45", "\t", "%", "---"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@settings(max_examples=examples(300))
@given(_CARDS)
@example("a: !!bool x")
@example("a: !!int ''")
@example("a: !!timestamp x")
def test_a_model_card_of_any_pieces_is_answered(body: str) -> None:
    front, problems = licenses.front_matter(f"---\n{body}\n---\n")
    assert front == {} or not problems
    licenses.stated_in_card(front)


@settings(max_examples=examples(200))
@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_a_scanners_report_of_any_form_is_read_or_refused(data: bytes) -> None:
    for parse in (
        trivy_report.parse_report,
        lambda text: modelaudit_report.parse_report(text, "/m"),
        lambda text: hub_status.parse_status(json.loads(text), {"a"}),
    ):
        try:
            parse(data)
        except ValueError:
            continue


@settings(max_examples=examples(200))
@given(st.text(max_size=40) | st.text(max_size=20).map("hf://{}".format))
def test_a_source_of_any_form_is_taken_or_refused(text: str) -> None:
    try:
        assert Source.parse(str(Source.parse(text))) == Source.parse(text)
    except (ValueError, ValidationError):
        return


_SOUND = {
    "safetensors": models.safetensors({"a": ("BF16", [4, 8], bytes(64)), "b": ("F32", [2], bytes(8))}),
    "gguf": models.gguf({"general.license": "mit", "tokenizer.chat_template": models.CHAT}),
}  # fmt: skip


@settings(max_examples=examples(400))
@given(
    st.sampled_from(sorted(_SOUND)),
    st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=9)), min_size=1, max_size=4),
    st.integers(0, 400),
)
def test_a_sound_file_with_anything_overwritten_is_answered(
    kind: str, changes: list[tuple[int, bytes]], length: int
) -> None:
    data = bytearray(_SOUND[kind])
    for at, piece in changes:
        data[at : at + len(piece)] = piece
    data = data[:length]
    if kind == "gguf":
        gguf.read_gguf(bytes(data), len(data))
        return
    header = safetensors.header_length(bytes(data[:8]), len(data))
    if isinstance(header, int):
        safetensors.check_header(bytes(data[8 : 8 + header]), len(data))


@pytest.mark.slow
def test_no_input_takes_more_than_bounded_time_and_memory() -> None:
    """In a process that may take three gigabytes and a minute of CPU for all of them together."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.unit.scanners.adversarial"],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ended.returncode == 0, f"{ended.stdout[-200:]}\n{ended.stderr[-2000:]}"
    assert ended.stdout.count("ended") == len(CASES)
