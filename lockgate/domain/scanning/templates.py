"""Chat templates: Jinja programs that a server runs for every request. Read as a syntax tree; rendered elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jinja2.ext
from jinja2 import TemplateSyntaxError, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lockgate.domain.scanning.problems import Problem, critical, high, low, medium, quoted

MAX_TEMPLATE = 256 << 10
"""Characters, where a policy does not say otherwise. The longest that is known of a public model is a tenth of it."""
MAX_OUTPUT = 4 << 20
MAX_RANGE = 10_000

_INTERNALS = re.compile(
    r"__(?:class|globals|builtins|subclasses|import|mro|base|bases|init|getattribute|dict|code|reduce"
    r"|reduce_ex|call|self|loader|spec|module|func|closure|getattr|getitem|new|del|annotations)__"
)
_MARKUP = re.compile(
    r"<\s*(?:script|iframe|object|embed)\b|javascript:|\bon(?:load|error)\s*=", re.I
)
_HIDDEN = re.compile("[\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
"""Characters that a reviewer does not see and a tokenizer does: direction overrides, and tags that spell ASCII."""
_ADDRESS = re.compile(r"\b(?:https?|ftp|data|wss?)://", re.I)
_PIVOTS = frozenset({"lipsum", "cycler", "joiner", "self", "request", "config", "url_for"})
"""Names from which template injections start, in Jinja's own globals or a web framework's; chat templates need none."""
_ATTRIBUTE_FILTERS = frozenset(
    {"map", "selectattr", "rejectattr", "groupby", "sort", "unique", "sum", "min", "max"}
)
_PADDERS = frozenset({"ljust", "rjust", "center", "zfill"})
_INTROSPECTION = frozenset({"mro", "gi_frame", "gi_code", "cr_frame", "f_globals", "f_builtins", "f_locals",
                            "func_globals", "func_code", "format_map", "tb_frame"})  # fmt: skip


class Generation(jinja2.ext.Extension):
    """The `{% generation %}` block of transformers, which marks what the assistant says: its body, unchanged."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as an instance's

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateRefusal(Exception):
    """What `raise_exception` of a template raises: it does not take this conversation."""


def sandbox() -> ImmutableSandboxedEnvironment:
    """The environment in which transformers and vLLM compile chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )

    def refuse(message: object) -> None:
        raise TemplateRefusal(str(message)[:200])

    def to_json(value: Any, **options: Any) -> str:
        known = {
            k: v
            for k, v in options.items()
            if k in ("ensure_ascii", "indent", "separators", "sort_keys")
        }
        return json.dumps(value, **{"ensure_ascii": False, **known})

    tojson: Callable[..., str] = to_json
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: "2026-01-01"
    return environment


def check_template(source: str, most: int = MAX_TEMPLATE) -> list[Problem]:
    """What the syntax tree of a template of at most `most` characters shows. Nothing is compiled or run."""
    if len(source) > most:
        return [high("template-too-large", f"a chat template of {len(source)} characters")]
    hidden = _HIDDEN.search(source)
    problems = []
    if hidden:
        line = source.count("\n", 0, hidden.start()) + 1
        message = f"line {line} holds invisible text: {quoted(hidden.group())}"
        problems.append(high("template-hidden-text", message))
    try:
        return [*problems, *_problems(sandbox().parse(source))]
    except RecursionError:
        return [*problems, high("template-bomb", "the template is nested too deeply to be read")]
    except (TemplateSyntaxError, ValueError, ArithmeticError) as error:
        # Jinja lets errors of Python's own numbers and strings through.
        return [*problems, high("template-syntax", f"no Jinja: {quoted(str(error))}")]


def _problems(tree: nodes.Node) -> Iterator[Problem]:
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    for node in _walk(tree):
        if isinstance(node, (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            yield critical("template-loads", f"line {node.lineno} loads another template")
        elif isinstance(node, nodes.Getattr):
            if node.attr.startswith("_") or node.attr in _INTROSPECTION:
                yield _reach(node, node.attr)
        elif isinstance(node, nodes.Getitem):
            yield from _item(node)
        elif isinstance(node, nodes.Filter):
            yield from _filter(node)
        elif isinstance(node, nodes.Name) and node.ctx == "load" and node.name in _PIVOTS - own:
            yield high("template-pivot", f"line {node.lineno} uses {quoted(node.name)}")
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            if _INTERNALS.search(node.value):
                yield high("template-internals", f"line {node.lineno}: {quoted(node.value)}")
            yield from _text(node.lineno, node.value)
        elif isinstance(node, nodes.TemplateData):
            yield from _text(node.lineno, node.data)
        elif isinstance(node, nodes.Pow):
            yield high("template-bomb", f"line {node.lineno} raises to a power")
        elif isinstance(node, nodes.Mul):
            if any(isinstance(n, nodes.Const) and _large(n.value) for n in (node.left, node.right)):
                yield high("template-bomb", f"line {node.lineno} multiplies by a large number")
        elif isinstance(node, nodes.Call):
            yield from _call(node)


def _walk(tree: nodes.Node) -> Iterator[nodes.Node]:
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.iter_child_nodes())


def _reach(node: nodes.Node, attribute: str) -> Problem:
    return critical("template-internals", f"line {node.lineno} reaches for {quoted(attribute)}")


def _large(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) > MAX_RANGE


def _text(line: int, text: str) -> Iterator[Problem]:
    # Text that a template adds to every conversation: a way to have a model hand out links or markup.
    if _MARKUP.search(text):
        yield high("template-markup", f"line {line} adds script to conversations: {quoted(text)}")
    elif _ADDRESS.search(text):
        yield low("template-address", f"line {line} adds an address: {quoted(text)}")


def _item(node: nodes.Getitem) -> Iterator[Problem]:
    key = node.arg
    if isinstance(key, nodes.Const):
        if isinstance(key.value, str) and key.value.startswith("__"):
            yield _reach(node, key.value)
    elif isinstance(key, (nodes.Add, nodes.Concat)) and any(
        isinstance(n, nodes.Const) and isinstance(n.value, str) and "_" in n.value
        for n in _walk(key)
    ):
        yield high("template-internals", f"line {node.lineno} puts a key together from pieces")


def _filter(node: nodes.Filter) -> Iterator[Problem]:
    if node.name == "attr":
        yield critical("template-internals", f"line {node.lineno} uses the attr filter")
        return
    if node.name not in _ATTRIBUTE_FILTERS:
        return
    values = [*node.args, *(keyword.value for keyword in node.kwargs)]
    for value in values:
        text = value.value if isinstance(value, nodes.Const) else None
        if isinstance(text, str) and any(part.startswith("_") for part in text.split(".")):
            yield _reach(node, text)
        if isinstance(text, str) and text == "attr":
            yield critical("template-internals", f"line {node.lineno} maps the attr filter")


def _call(node: nodes.Call) -> Iterator[Problem]:
    callee = node.node
    if isinstance(callee, nodes.Name) and callee.name == "range":
        if any(isinstance(a, nodes.Const) and _large(a.value) for a in node.args):
            yield high("template-bomb", f"line {node.lineno} counts beyond {MAX_RANGE}")
    elif isinstance(callee, nodes.Getattr) and callee.attr in ("format", "join", "replace"):
        literal = callee.node
        if (
            callee.attr == "format"
            and isinstance(literal, nodes.Const)
            and isinstance(literal.value, str)
            and "._" in literal.value
        ):
            yield _reach(node, literal.value)
    elif isinstance(callee, nodes.Getattr) and callee.attr in _PADDERS:
        for argument in node.args:
            if not (isinstance(argument, nodes.Const) and _large(argument.value)):
                continue
            yield medium("template-bomb", f"line {node.lineno} pads to a large width")


SAMPLES: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "Hello"}]},
    {
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "Hello"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello, what can I do?"},
            {"role": "user", "content": "{{ 7 * 7 }} <b>&amp;</b> \u2028 '\""},
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
)
"""Conversations that a template is rendered with. It may refuse some, not all."""
