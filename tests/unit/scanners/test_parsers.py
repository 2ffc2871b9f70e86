"""Every parser of ours answers any bytes: with problems, never with an exception, in bounded time."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.domain.scanning import gguf, json_shape, licenses, safetensors, templates
from lockgate.domain.scanning.content import Kind, is_pickle, sniff
from tests.unit.scanners import models

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


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=4), _TENSOR | _JSON, max_size=4), st.integers(0, 200))
def test_a_safetensors_header_of_any_form_is_answered(header: dict[str, Any], size: int) -> None:
    text = json.dumps(header).encode()
    problems = safetensors.check_header(text, 8 + len(text) + size)
    if not problems:
        # Accepted: then the tensors cover the data exactly.
        spans = [v["data_offsets"] for k, v in header.items() if k != "__metadata__"]
        assert sum(end - begin for begin, end in spans) == size


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_gguf_of_any_bytes_is_answered(data: bytes) -> None:
    for window in (data, b"GGUF" + struct.pack("<I", 3) + data):
        facts = gguf.read_gguf(window, len(window))
        assert facts.problems or window.startswith(b"GGUF")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_have_a_kind_and_json_and_front_matter_an_answer(data: bytes) -> None:
    assert sniff(data, data) in Kind
    value, problems = json_shape.parse(data)
    assert value is None or not problems
    licenses.front_matter("---\n" + data.decode("latin-1") + "\n---\n")


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=300, deadline=None)
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
