"""A judge put aside: all that it has made of a trace, beside the trace, so that nobody reads the same lines again.

The trace stays what is believed. A checkpoint counts only where the same code made it of the same beginning of the same trace
for the same step; else it is as if there were none, and the whole trace is read. It is JSON: numbers, text and, by name, the
domain's own types; nothing in it is run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
from collections import deque
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

import lockgate.domain
from lockgate.domain.judge.bets import Bets
from lockgate.errors import LockgateError

logger = logging.getLogger("lockgate.release")

_PLAIN = (type(None), bool, int, float, str)
_OURS = "lockgate.domain."
_RECOMPUTED: dict[type, tuple[str, ...]] = {Bets: ("_known",)}
"""Attributes that only save work: they are kept empty."""
_MAKERS = ("base.py", "judge/**/*.py", "objectives.py", "spec.py", "trace.py")
"""The domain's modules whose objects are kept, and what these are made by."""
_ENDS_BYTES = 64 * 1024
"""How much of the beginning, and of the end, of what was read is compared. A trace is only ever appended to."""


class NotKept(LockgateError):
    """There is something in the graph of objects that this cannot put aside, or bring back."""


class _Writer:
    """Objects as a list of nodes, each once: what was shared or refers to itself still does when it is back."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._known: dict[int, int] = {}
        self._alive: list[Any] = []
        """Identities are those of living objects only."""

    def value(self, item: Any) -> Any:
        if type(item) in _PLAIN:
            return item
        place = self._known.get(id(item))
        if place is None:
            place = self._known[id(item)] = len(self.nodes)
            self._alive.append(item)
            self.nodes.append(None)
            self.nodes[place] = self._node(item)
        return [place]

    def _node(self, item: Any) -> list[Any]:
        kind = type(item)
        if kind in (list, tuple):
            return [kind.__name__, [self.value(part) for part in item]]
        if kind is dict:
            return ["dict", [[self.value(k), self.value(v)] for k, v in item.items()]]
        if kind in (set, frozenset):
            return [kind.__name__, sorted((self.value(part) for part in item), key=repr)]
        if kind is deque:
            return ["deque", [self.value(part) for part in item], item.maxlen]
        if kind is np.ndarray:
            return self._array(item)
        if isinstance(item, np.generic):
            return ["scalar", item.dtype.str, item.item()]
        if not kind.__module__.startswith(_OURS):
            raise NotKept(f"{kind.__module__}.{kind.__qualname__}")
        name = [kind.__module__, kind.__qualname__]
        if isinstance(item, Enum):
            return ["enum", *name, item.value]
        if isinstance(item, BaseModel):
            fields = [[key, self.value(getattr(item, key))] for key in kind.model_fields]
            return ["model", *name, fields]
        if any(getattr(base, "__slots__", ()) for base in kind.__mro__):
            raise NotKept(f"{kind.__qualname__} keeps its attributes elsewhere")
        empty = _RECOMPUTED.get(kind, ())
        return ["object", *name,
                [[key, self.value(type(part)() if key in empty else part)]
                 for key, part in vars(item).items()]]  # fmt: skip

    def _array(self, item: Any) -> list[Any]:
        """A view stays one: who writes into the array that it is of writes into the view."""
        whole = item
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        if whole is item or not whole.flags.c_contiguous:
            return ["array", item.dtype.str, list(item.shape), item.ravel().tolist()]
        begins = [a.__array_interface__["data"][0] for a in (whole, item)]
        return ["view", item.dtype.str, list(item.shape), self.value(whole), begins[1] - begins[0],
                list(item.strides)]  # fmt: skip


class _Reader:
    """The objects of a list of nodes."""

    def __init__(self, nodes: list[Any]) -> None:
        self._nodes = nodes
        self._made: dict[int, Any] = {}

    def value(self, item: Any) -> Any:
        if not isinstance(item, list):
            return item
        [place] = item
        if place not in self._made:
            self._make(place, *self._nodes[place])
        return self._made[place]

    def _make(self, place: int, kind: str, *rest: Any) -> None:
        made = self._made
        if kind in ("list", "deque"):
            made[place] = [] if kind == "list" else deque(maxlen=rest[1])
            made[place].extend(self.value(part) for part in rest[0])
        elif kind == "dict":
            made[place] = {}
            made[place].update((self.value(k), self.value(v)) for k, v in rest[0])
        elif kind in ("tuple", "set", "frozenset"):
            build = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
            made[place] = build(self.value(part) for part in rest[0])
        elif kind == "array":
            made[place] = np.array(rest[2], dtype=rest[0]).reshape(rest[1])
        elif kind == "view":
            dtype, shape, whole, offset, strides = rest
            made[place] = np.ndarray(shape, dtype, self.value(whole), offset, strides)
        elif kind == "scalar":
            made[place] = np.dtype(rest[0]).type(rest[1])
        elif kind == "enum":
            made[place] = _class(*rest[:2])(rest[2])
        elif kind == "model":
            fields = {key: self.value(part) for key, part in rest[2]}
            made[place] = _class(*rest[:2]).model_construct(**fields)
        elif kind == "object":
            made[place] = object.__new__(_class(*rest[:2]))
            vars(made[place]).update((key, self.value(part)) for key, part in rest[2])
        else:
            raise NotKept(f"a node of kind {kind!r}")


def _class(module: str, name: str) -> Any:
    if not module.startswith(_OURS):
        raise NotKept(f"{module}.{name} is none of the domain's types")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, type) or found.__module__ != module:
        raise NotKept(f"{module}.{name} is no type")
    return found


@lru_cache(maxsize=1)
def _code() -> str:
    """What makes states of traces: another version of it may make another one."""
    digest = hashlib.sha256(f"{np.__version__}\n".encode())
    for root in map(Path, lockgate.domain.__path__):
        for name in _MAKERS:
            for path in sorted(root.glob(name)):
                digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _ends(trace: Path, size: int) -> str:
    """Digest of both ends of the first `size` bytes of the trace."""
    with trace.open("rb") as file:
        head = file.read(min(size, _ENDS_BYTES))
        file.seek(max(0, size - _ENDS_BYTES))
        tail = file.read(min(size, _ENDS_BYTES))
    if len(tail) < min(size, _ENDS_BYTES):
        raise NotKept("the trace is shorter than what was read of it")
    if size and not tail.endswith(b"\n"):
        raise NotKept("what was read of the trace ends within a line")
    return hashlib.sha256(head + tail).hexdigest()


def put_aside(path: Path, trace: Path, *, step: Any, size: int, lines: int, held: Any) -> None:
    """Keep `held`, made of the trace's first `size` bytes (`lines` lines) for the step that `step` (JSON) describes. What cannot
    be kept is not, and says so in the log: the next one reads the trace."""
    try:
        writer = _Writer()
        root = writer.value(held)
        document = {
            "code": _code(), "step": step, "size": size, "lines": lines, "ends": _ends(trace, size),
            "root": root, "nodes": writer.nodes,
        }  # fmt: skip
        written = path.with_name(f".{path.name}.{os.getpid()}")
        written.write_text(json.dumps(document, separators=(",", ":")))
        written.replace(path)
    except (OSError, NotKept) as error:
        logger.warning("no checkpoint of the judge: %s", error)


def bring_back(path: Path, trace: Path, *, step: Any) -> tuple[Any, int, int] | None:
    """What was kept, and of how many bytes and lines of the trace it was made; None where there is nothing that counts."""
    try:
        document = json.loads(path.read_bytes())
        same = (document["code"], document["step"]) == (_code(), step)
        size, lines = int(document["size"]), int(document["lines"])
        if not same or document["ends"] != _ends(trace, size):
            logger.info("the judge's checkpoint is of something else: the whole trace is read")
            return None
        return _Reader(document["nodes"]).value(document["root"]), size, lines
    except FileNotFoundError:
        return None
    except (OSError, NotKept, ValueError, TypeError, LookupError, AttributeError) as error:
        logger.warning("the judge's checkpoint is not usable, the whole trace is read: %r", error)
        return None
