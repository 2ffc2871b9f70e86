"""Small models made in code: benign ones, and the parts that malicious ones are made of."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

APACHE = "Apache License\nVersion 2.0, January 2004\nhttp://www.apache.org/licenses/\n"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 128,
}


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], metadata: Any = None) -> bytes:
    """A sound file from names to dtype, shape and bytes."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return with_header(header) + b"".join(data for _, _, data in tensors.values())


def with_header(header: Any) -> bytes:
    """The length and the header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def gguf(metadata: dict[str, str], version: int = 3, tail: bytes = b"") -> bytes:
    """A GGUF file of string metadata and no tensors."""

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack("<Q", len(data)) + data

    pairs = b"".join(text(k) + struct.pack("<I", 8) + text(v) for k, v in metadata.items())
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(metadata)) + pairs + tail


def write(directory: Path, name: str, content: bytes | str | dict[str, Any] | list[Any]) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, (dict, list)):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def benign(directory: Path, *, template: str = CHAT, license_tag: str = "apache-2.0") -> Path:
    """A small Hugging Face directory that nothing is wrong with."""
    write(directory, "config.json", CONFIG)
    write(directory, "generation_config.json", {"eos_token_id": 2})
    write(directory, "tokenizer_config.json", {"chat_template": template, "eos_token": "</s>"})
    write(directory, "tokenizer.json", {"model": {"vocab": {"auto_map": 1, "a": 2}, "merges": []}})
    weights = safetensors(
        {"a": ("BF16", [4, 8], bytes(64)), "b": ("F32", [2], bytes(8))}, {"format": "pt"}
    )
    write(directory, "model.safetensors", weights)
    write(directory, "README.md", f"---\nlicense: {license_tag}\n---\n# Model\n")
    write(directory, "LICENSE", APACHE)
    return directory
