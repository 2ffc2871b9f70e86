"""Inputs over which a check takes minutes, or gigabytes, if any step of it is more than linear. Run as a program: all of them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.scanning import (
    content,
    gguf,
    json_shape,
    licenses,
    model_config,
    names,
    safetensors,
    secrets,
    templates,
)

MEMORY = 3 << 30
CPU_SECONDS = 60
M = 1 << 20


def _card(body: str) -> Any:
    return licenses.front_matter(f"---\n{body}\n---\n")


def _template(text: str) -> Any:
    return templates.check_template(text)


def _walked(value: Any) -> Any:
    list(model_config.check_json("a.json", value, ()))
    return model_config.templates_in(value)


def _ladder(depth: int, key: str) -> Any:
    value: Any = [{}] * 1000
    for _ in range(depth):
        value = {key: value}
    return value


def _count(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _gguf(key: bytes, value: bytes) -> Any:
    head = b"GGUF" + (3).to_bytes(4, "little") + _count(0) + _count(1)
    return gguf.read_gguf(head + _count(len(key)) + key + value, 1 << 40)


CASES: dict[str, Callable[[], Any]] = {
    "JSON: an open string of escapes": lambda: json_shape.parse(b'["' + b'\\"' * (8 * M)),
    "JSON: a long string": lambda: json_shape.parse(b'["' + b"a" * (40 * M) + b'"]'),
    "JSON: a string of escapes": lambda: json_shape.parse(b'["' + b"\\n" * (20 * M) + b'"]'),
    "JSON: many keys": lambda: json_shape.parse(
        b"{" + b",".join(b'"%d":1' % n for n in range(500_000)) + b"}"
    ),
    "JSON: many empty objects": lambda: json_shape.parse(b"[" + b"{}," * 1_000_000 + b"1]"),
    "JSON: a long number": lambda: json_shape.parse(b"[" + b"9" * (10 * M) + b"]"),
    "JSON: many long numbers": lambda: json_shape.parse(b"[" + (b"9" * 4000 + b",") * 3000 + b"1]"),
    "card: brackets": lambda: _card("[" * 60_000),
    "card: brackets that close": lambda: _card("[] " * 20_000),
    "card: question marks": lambda: _card("? " * 30_000),
    "card: dashes": lambda: _card("- " * 30_000),
    "card: keys": lambda: _card("a: b\n" * 12_000),
    "card: anchors": lambda: _card("&a " * 20_000),
    "card: quotes": lambda: _card("'" * 60_000),
    "template: brackets": lambda: _template("{{ " + "[" * 100_000),
    "template: operators": lambda: _template("{{ a" + "+a" * 50_000 + " }}"),
    "template: filters": lambda: _template("{{ a" + "|b" * 50_000 + " }}"),
    "template: blocks": lambda: _template("{% if a %}" * 20_000),
    "template: comments": lambda: _template("{#" * 100_000),
    "template: an open tag": lambda: _template("{%" + " " * 200_000),
    "template: open tags": lambda: _template("{%    " * 40_000),
    "template: raw": lambda: _template("{% raw %}" + "{% " * 80_000),
    "template: markup": lambda: _template("<" + " " * 200_000 + "<"),
    "template: a long number": lambda: _template("{{ " + "9" * 200_000 + " }}"),
    "license: one word": lambda: licenses.recognise("license " * 130_000),
    "secrets: almost private keys": lambda: secrets.check_secrets(b"-----BEGIN " * 380_000),
    "secrets: a key of capitals": lambda: secrets.check_secrets(b"-----BEGIN " + b"A " * (2 * M)),
    "secrets: tokens": lambda: secrets.check_secrets(b"sk-" * M + b"-" * 100),
    "secrets: dashes": lambda: secrets.check_secrets(b"sk-" + b"-" * (4 * M)),
    "configuration: a long key above many": lambda: _walked({"k" * (8 * M): [{}] * 1_000_000}),
    "configuration: a long key above many templates": lambda: _walked(
        {"k" * (4 * M): [{"chat_template": str(n)} for n in range(200_000)]}
    ),
    "configuration: long keys below each other": lambda: _walked(_ladder(60, "k" * (M // 4))),
    "pattern: groups": lambda: model_config.endless("(" * M + "a+" + ")" * M),
    "pattern: open classes": lambda: model_config.endless("[" * (M // 4)),
    "safetensors: braces": lambda: safetensors.check_header(b"{" * (32 * M), 64 * M),
    "safetensors: tensors": lambda: safetensors.check_header(
        b"{" + b",".join(b'"%d":{}' % n for n in range(300_000)) + b"}", 64 * M
    ),
    "GGUF: two million strings": lambda: _gguf(
        b"a", b"\x09\0\0\0\x08\0\0\0" + _count(2 * M) + bytes(16 * M)
    ),
    "GGUF: a template of no characters": lambda: _gguf(
        b"chat_template", b"\x08\0\0\0" + _count(8 * M) + b"\xff" * (8 * M)
    ),
    "pickle: marks": lambda: content.is_pickle(b"\x80\x04" + b"(" * 60_000),
    "pickle: text": lambda: content.is_pickle(b"c" + b"a" * 200 + b"\n" + b"b" * 60_000),
    "name: many folders": lambda: names.check_names(
        ["a/" * 100_000 + "x.json"], WeightScanPolicy()
    ),
}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    for name, run in CASES.items():
        began = time.process_time()
        print(name, flush=True)
        run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"  ended after {time.process_time() - began:.1f} s, peak {peak} MB", flush=True)


if __name__ == "__main__":
    main()
