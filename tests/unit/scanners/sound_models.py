"""Benign models of the forms that are published, made in code: none may be blocked."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.scanners.models import CHAT, CONFIG, benign, gguf, safetensors, with_header, write

_INDEX = "model.safetensors.index.json"
_GPT_PATTERN = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_REASONING = """
{%- if tools %}{{- '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}
{%- if ns.multi_step_tool and message.role == "user" and message.content is string and
   not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set ns.multi_step_tool = false %}{% set ns.last = index %}{% endif %}{% endfor %}
{%- for message in messages %}{% if message.content is string %}{% set content = message.content %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def _sharded(directory: Path) -> None:
    benign(directory)
    (directory / "model.safetensors").unlink()
    for shard in ("a", "b"):
        weights = safetensors({shard: ("F16", [2, 2], bytes(8))})
        write(directory, f"model-{shard}.safetensors", weights)
    names = {shard: f"model-{shard}.safetensors" for shard in ("a", "b")}
    write(directory, _INDEX, {"metadata": {"total_size": 16}, "weight_map": names})


def _experts(directory: Path) -> None:
    """An index of many experts, as large as those of the largest models."""
    _sharded(directory)
    names = {f"model.layers.{n % 61}.mlp.experts.{n}.up_proj.weight": "model-a.safetensors" for n in range(60_000)}  # fmt: skip
    write(directory, _INDEX, {"metadata": {}, "weight_map": names})


def _quantized(directory: Path) -> None:
    benign(directory)
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}}
    write(directory, "config.json", {**CONFIG, "quantization_config": quantization})
    tensors = {"w": ("I8", [8, 8], bytes(64)), "w_scale": ("BF16", [8, 1], bytes(16))}
    write(directory, "model.safetensors", safetensors(tensors))
    write(directory, "recipe.yaml", "default_stage:\n  default_modifiers:\n    QuantizationModifier: {scheme: W8A8}\n")  # fmt: skip


def _packed(directory: Path) -> None:
    """Types of fewer bits, an empty tensor and a scalar."""
    benign(directory)
    tensors = {
        "packed": ("I32", [8, 1], bytes(32)), "fp8": ("F8_E4M3", [4], bytes(4)), "fp4": ("F4", [4], bytes(2)),
        "none": ("F32", [0, 4], b""), "one": ("F32", [], bytes(4)),
    }  # fmt: skip
    write(directory, "model.safetensors", safetensors(tensors, {"format": "pt"}))


def _gguf(directory: Path) -> None:
    write(directory, "model.gguf", gguf({"general.license": "mit", "tokenizer.chat_template": CHAT}))  # fmt: skip
    write(directory, "LICENSE", b"Copyright \xa9 X. Permission is hereby granted, free of charge, "
          b"to any person obtaining a copy")  # fmt: skip


def _gguf_with_tensors(directory: Path) -> None:
    """Numbers, an array of strings, and two tensors, as converters write them."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    words = struct.pack("<IIQ", 9, 8, 3) + text("<s>") + text("a") + text("b")
    pairs = (
        text("general.architecture") + struct.pack("<I", 8) + text("llama")
        + text("general.alignment") + struct.pack("<II", 4, 32)
        + text("tokenizer.ggml.tokens") + words
    )  # fmt: skip
    tensors = text("a") + struct.pack("<IQIQ", 1, 32, 8, 0) + text("b") + struct.pack("<IQIQ", 1, 4, 0, 64)  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 3) + pairs + tensors
    data = bytes(34) + bytes(30) + bytes(16)
    write(directory, "model.gguf", head + bytes(-len(head) % 32) + data)


def _demanding_template(directory: Path) -> None:
    benign(
        directory,
        template=(
            "{%- if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}"
            "{%- endif %}{% set ns = namespace(found=false) %}"
            "{% for m in messages|selectattr('role', 'equalto', 'user') %}"
            "{% if m.content is string %}{{ m.content|trim }}{% else %}{{ m.content|tojson }}{% endif %}"
            "{% generation %}{{ strftime_now('%d %b %Y') }}{% endgeneration %}"
            "{% if loop.last %}{% break %}{% endif %}{% endfor %}"
        ),
    )


def _reasoning_template(directory: Path) -> None:
    benign(directory, template="")
    write(directory, "chat_template.jinja", _REASONING)


def _several_templates(directory: Path) -> None:
    benign(directory)
    templates = [{"name": "default", "template": CHAT}, {"name": "rag", "template": CHAT + "\n"}]
    write(directory, "tokenizer_config.json", {"chat_template": templates})
    write(directory, "additional_chat_templates/tool_use.jinja", CHAT)


def _address_in_template(directory: Path) -> None:
    benign(directory, template=CHAT + "{# https://docs.example #}\nSee https://docs.example\n")


def _awkward_header_length(directory: Path) -> None:
    # A header of 0x380 bytes begins with the two bytes of a pickle of protocol 3.
    benign(directory)
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    write(directory, "model.safetensors", with_header(header.ljust(0x380)) + b"\0")


def _state_space(directory: Path) -> None:
    benign(directory)
    (directory / "config.json").write_text(
        json.dumps({**CONFIG, "time_step_limit": [0.0, float("inf")]})
    )


def _tokenizer(directory: Path) -> None:
    """A byte-level tokenizer with the pattern of GPT-4, special tokens, and a vocabulary that names dangerous things."""
    benign(directory)
    words = ["auto_map", "os.system", "__class__", "<script>", "eval(", "\u202e", "-----BEGIN"]
    vocabulary = {word: number for number, word in enumerate([*words, *map(str, range(20_000))])}
    special = {"id": 30_000, "content": "<|im_end|>", "special": True}
    write(directory, "tokenizer.json", {
        "added_tokens": [special], "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": _GPT_PATTERN}, "behavior": "Isolated"}]},
        "post_processor": {"special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    })  # fmt: skip
    write(directory, "merges.txt", "#version: 0.2\n" + "a b\n" * 1000)


def _sentencepiece(directory: Path) -> None:
    benign(directory)
    pieces = b"".join(b"\n\x0e\n\x05\xe2\x96\x81ab\x15\0\0\0\0\x18\x01" for _ in range(500))
    write(directory, "tokenizer.model", pieces)


def _tiktoken(directory: Path) -> None:
    benign(directory)
    write(directory, "qwen.tiktoken", "".join(f"IQ{n:02d}== {n}\n" for n in range(90)))


def _multimodal(directory: Path) -> None:
    benign(directory)
    text = {k: v for k, v in CONFIG.items() if k != "architectures"}
    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
              "text_config": text, "vision_config": {"hidden_size": 32, "patch_size": 14}}  # fmt: skip
    write(directory, "config.json", config)
    write(directory, "preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessor", "size": {"shortest_edge": 56}})  # fmt: skip
    write(directory, "processor_config.json", {"processor_class": "Qwen2VLProcessor"})
    write(directory, "chat_template.json", {"chat_template": CHAT})


def _other_license(directory: Path) -> None:
    benign(directory)
    (directory / "LICENSE").unlink()
    write(directory, "README.md", "---\r\nlicense: other\r\nlicense_name: llama3.2\r\nlanguage: [en, de]\r\n"
          "widget:\r\n- text: '[[[ what is this?'\r\n---\r\n# Modell \u2014 \u6a21\u578b \U0001f600\r\n")  # fmt: skip
    write(directory, "USE_POLICY.md", "Be good.\n")
    write(directory, "LICENSE.txt", "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version\n")


def _names(directory: Path) -> None:
    benign(directory)
    write(directory, "\u4f7f\u7528\u8bf4\u660e.md", "\u4f60\u597d\n")
    write(directory, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "model_type": "x"})
    write(directory, "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])  # fmt: skip
    write(directory, ".gitattributes", "*.safetensors filter=lfs\n")


def _random_weights(directory: Path) -> None:
    """Large enough that its substance is looked at; random bytes look like anything now and then."""
    benign(directory)
    data = os.urandom(1 << 20) * 20
    write(directory, "model.safetensors", safetensors({"a": ("U8", [len(data)], data)}))


BENIGN: dict[str, Callable[[Path], Any]] = {
    "plain": benign,
    "sharded": _sharded,
    "index of sixty thousand experts": _experts,
    "quantized": _quantized,
    "packed types, empty tensor, scalar": _packed,
    "random weights": _random_weights,
    "GGUF with an old encoding in its license": _gguf,
    "GGUF with tensors": _gguf_with_tensors,
    "template that refuses some conversations": _demanding_template,
    "template of a reasoning model with tools": _reasoning_template,
    "several templates": _several_templates,
    "template that names an address": _address_in_template,
    "header length that looks like a pickle": _awkward_header_length,
    "configuration with Infinity": _state_space,
    "tokenizer that names dangerous things": _tokenizer,
    "sentencepiece": _sentencepiece,
    "tiktoken": _tiktoken,
    "multimodal": _multimodal,
    "license by name, card in CRLF": _other_license,
    "names in other scripts, and in folders": _names,
}
