"""A model's JSON files: code by reference, absurd sizes, indexes that point elsewhere, and where templates hide."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from lockgate.domain.scanning.problems import Problem, critical, high, medium, quoted

REMOTE_CODE_KEYS = frozenset(
    {
        "auto_map", "custom_pipelines", "trust_remote_code", "custom_code", "custom_generate",
        # Serialisers that make an object of any class that a file names: Hydra, jsonpickle, NeMo's OmegaConf.
        "_target_", "py/object", "py/reduce", "py/function", "py/type",
    }
)  # fmt: skip
VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json"})
"""Large tables in which any text may be a key: remote-code keys are looked for at their top only."""

_PYTHON_TAG = re.compile(rb"!!python/|tag:yaml\.org,2002:python/|!<[^>\n]{0,80}python/")
_ESCAPED = re.compile(r"\\[pP]\{[^}]{0,40}\}|\\.", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\]]*+(?:\]|\Z)")
_REGEX_PART = re.compile(r"[()*+]|\{\d*,\}")
MAX_TOKENS = 1 << 24
LONGEST_PATH = 300
"""Characters of a path of keys that are kept, for messages."""

# Key -> (smallest, largest). A model outside of these would be a trap for whoever sizes a server by its config.
_SIZES = {
    "hidden_size": (1, 1 << 17),
    "intermediate_size": (1, 1 << 20),
    "num_hidden_layers": (1, 4096),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 28),
    "head_dim": (1, 1 << 16),
}


def check_json(path: str, value: Any, files: Collection[str]) -> list[Problem]:
    """Checks of one parsed JSON file of a model that consists of `files`."""
    name = PurePosixPath(path).name
    problems = list(_remote_code(name, value))
    if name == "config.json":
        problems += _config(value)
    if name.endswith(".index.json"):
        problems += _index(path, value, files)
    if name == "modules.json":
        problems += _modules(value)
    if name == "tokenizer.json":
        problems += _tokenizer(value)
    if name in ("tokenizer_config.json", "generation_config.json") and not isinstance(value, dict):
        problems.append(high("config-malformed", f"{name} is not an object"))
    return problems


def templates_in(value: Any) -> list[tuple[str, str]]:
    """All chat templates in a parsed configuration, each with the path of keys to it.

    Different keys can spell the same path: none of their templates hides another's.
    """
    found: dict[tuple[str, str], None] = {}
    for where, key, item in _walk(value):
        if "chat_template" not in key and key != "template":
            continue
        if isinstance(item, str) and item.strip():
            found[where, item] = None
        elif isinstance(item, dict):
            named = [(_below(where, f".{k}"), v) for k, v in item.items() if isinstance(v, str)]
            found.update(dict.fromkeys(named))
    return list(found)


def check_yaml(data: bytes) -> list[Problem]:
    """Tags in a YAML file that make Python objects of what they name."""
    found = _PYTHON_TAG.search(data)
    if found is None:
        return []
    line = data.count(b"\n", 0, found.start()) + 1
    return [critical("remote-code", f"line {line} asks YAML to make a Python object")]


def _walk(value: Any) -> Iterator[tuple[str, str, Any]]:
    """Every key, with the path to it (its beginning, where it is long) and its value. What is walked was bounded when it
    was parsed."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        where, item = pending.pop()
        if isinstance(item, dict):
            for key, child in item.items():
                inner = _below(where, f".{key[:LONGEST_PATH]}").lstrip(".")
                yield inner, key, child
                if isinstance(child, (dict, list)):
                    pending.append((inner, child))
        elif isinstance(item, list):
            pending += [
                (_below(where, f"[{n}]"), child)
                for n, child in enumerate(item)
                if isinstance(child, (dict, list))
            ]


def _below(where: str, part: str) -> str:
    """Bounded: a key of megabytes stands above as many others as fit into the file."""
    return f"{where}{part}"[:LONGEST_PATH]


def _remote_code(name: str, value: Any) -> Iterator[Problem]:
    if name in VOCABULARIES:
        items = [(k, k, v) for k, v in value.items()] if isinstance(value, dict) else []
    else:
        items = list(_walk(value))
    for where, key, item in items:
        if key in REMOTE_CODE_KEYS and item not in (None, False, {}, []):
            # vLLM has followed auto_map without the trust flag (CVE-2026-22807): its absence is the only safe state.
            yield critical("remote-code", f"{quoted(where)} asks the loader to run code")


def _modules(value: Any) -> Iterator[Problem]:
    """sentence-transformers imports the class that each entry names."""
    for _, key, item in _walk(value):
        if key == "type" and not str(item).startswith("sentence_transformers."):
            yield critical("remote-code", f"modules.json imports {quoted(item)}")


def _tokenizer(value: Any) -> Iterator[Problem]:
    """Token ids for which a server would reserve memory, and patterns that take for ever on some prompts."""
    for where, key, item in _walk(value):
        if key == "Regex" and isinstance(item, str) and endless(item):
            yield medium("tokenizer-regex", f"{quoted(where)} repeats what repeats: {quoted(item)}")
    model = value.get("model") if isinstance(value, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = value.get("added_tokens") if isinstance(value, dict) else None
    for token in added if isinstance(added, list) else ():
        if not isinstance(token, dict) or not _is_token(token.get("id")):
            yield high("tokenizer-size", f"an added token is {quoted(token)}")
            break
    if isinstance(vocabulary, dict):
        wrong = next((item for item in vocabulary.values() if not _is_token(item)), None)
        if wrong is not None:
            yield high("tokenizer-size", f"the vocabulary holds the token {quoted(wrong)}")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS


def endless(pattern: str) -> bool:
    """Whether a regular expression repeats without limit a group that itself repeats without limit, as in `(a+)+`."""
    plain = _CLASS.sub("c", _ESCAPED.sub("e", pattern))
    open_groups: list[bool] = []
    closed = False
    """Whether the group that ended just before repeats inside."""
    for match in _REGEX_PART.finditer(plain):
        part = match.group()
        if part == "(":
            open_groups.append(False)
            closed = False
        elif part == ")":
            closed = open_groups.pop() if open_groups else False
            if open_groups:
                open_groups[-1] |= closed
        elif part in "*+" or part.endswith(",}"):
            if closed and plain[match.start() - 1 : match.start()] == ")":
                return True
            if open_groups:
                open_groups[-1] = True
    return False


def _config(value: Any) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield high("config-malformed", "config.json is not an object")
        return
    architectures = value.get("architectures")
    named = isinstance(architectures, list) and all(
        isinstance(a, str) and a.isidentifier() for a in architectures
    )
    if architectures is not None and not (named and architectures):
        yield high("config-malformed", "architectures is not a list of class names")
    model_type = value.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        yield high("config-malformed", "model_type is not a string")
    if architectures is None and model_type is None:
        yield medium("config-malformed", "neither architectures nor model_type is there")
    for _, key, item in _walk(value):
        if key not in _SIZES or item is None or isinstance(item, (list, dict)):
            continue
        smallest, largest = _SIZES[key]
        number = isinstance(item, (int, float)) and not isinstance(item, bool)
        if not number or not smallest <= item <= largest:
            yield high("config-size", f"{key} is {quoted(item)}")


def _index(path: str, value: Any, files: Collection[str]) -> Iterator[Problem]:
    weights = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(v, str) for v in weights.values()):
        yield high("index-malformed", "weight_map is not a map of file names")
        return
    folder = PurePosixPath(path).parent
    for target in sorted(set(weights.values())):
        parts = PurePosixPath(target).parts
        if target.startswith("/") or ".." in parts or "\\" in target:
            yield critical("index-escapes", f"the index points outside the model: {quoted(target)}")
        elif str(folder / target) not in files:
            yield high("index-incomplete", f"the index names a missing file: {quoted(target)}")
