"""Malicious models are blocked, each for its own reason; benign ones pass; and nothing of them is ever run."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockgate.adapters.scanners import scan_weights
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.evidence import ScanEvidence, ScannerStatus
from lockgate.domain.gates import Decision
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import DEFAULT_FORMATS, Policy, WeightScanPolicy
from tests.unit.scanners.models import CHAT, CONFIG, benign, gguf, safetensors, with_header, write

Build = Callable[[Path, Path], None]


class _Runs:
    """A pickle of this runs a shell command when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self._command = f"touch {canary}"

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


def _pickle(canary: Path, protocol: int = 4) -> bytes:
    return pickle.dumps(_Runs(canary), protocol)


def _zip(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def _numpy(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Runs(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _tar(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _bad_crc(data: bytes) -> bytes:
    at = data.index(b"PK\x03\x04") + 14
    return data[:at] + b"\x00\x00\x00\x01" + data[at + 4 :]


def _file(name: str, content: Any) -> Build:
    def build(directory: Path, canary: Path) -> None:
        write(directory, name, content(canary) if callable(content) else content)

    return build


def _template(text: str) -> Build:
    def build(directory: Path, canary: Path) -> None:
        benign(directory, template=text.replace("CANARY", str(canary)))

    return build


def _config(**changes: Any) -> Build:
    return _file("config.json", {**CONFIG, **changes})


def _tensor(offsets: list[int], shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


_ESCAPE = "().__class__.__base__.__subclasses__()"
_INDEX = "model.safetensors.index.json"

STRUCTURE = WeightScanPolicy(scanners=("structure",))
MALICIOUS: dict[str, tuple[str, Build]] = {
    "pickle weights": ("format-not-allowed", _file("pytorch_model.bin", _pickle)),
    "pickle that imports os.system": ("pickle-import", _file("extra.pkl", _pickle)),
    "pickle named safetensors": ("content-mismatch", _file("model.safetensors", _pickle)),
    "pickle of protocol 0 named txt": (
        "content-mismatch",
        _file("vocab.txt", lambda canary: _pickle(canary, 0)),
    ),
    "pickle that is cut off": ("pickle-import", _file("a.pkl", lambda c: _pickle(c)[:-2])),
    "torch zip with a pickle": (
        "pickle-import",
        _file("model.pt", lambda c: _zip(("archive/data.pkl", _pickle(c)))),
    ),
    "torch zip with a wrong checksum": (
        "pickle-import",
        _file("model.pt", lambda c: _bad_crc(_zip(("archive/data.pkl", _pickle(c))))),
    ),
    "zip appended to text": (
        "content-mismatch",
        _file("notes.txt", lambda c: b"hello\n" + _zip(("__main__.py", b"import os"))),
    ),
    "zip appended to safetensors": (
        "content-mismatch",
        _file(
            "model.safetensors",
            lambda c: safetensors({"a": ("U8", [4], bytes(4))}) + _zip(("x.py", b"")),
        ),
    ),
    "numpy object array": ("pickle-import", _file("vectors.npy", _numpy)),
    "tar named model": (
        "content-mismatch",
        _file("tokenizer.json", lambda c: _tar("../../escape", b"x")),
    ),
    "Keras file": (
        "content-mismatch",
        _file("weights.model.txt", b"\x89HDF\r\n\x1a\n" + bytes(64)),
    ),
    "ELF named model": ("content-mismatch", _file("tokenizer.model", b"\x7fELF" + bytes(64))),
    "shell script named md": ("content-mismatch", _file("NOTES.md", "#!/bin/sh\ntouch x\n")),
    "Python file": ("code-file", _file("modeling_x.py", "import os\nos.system('true')\n")),
    "shared object with a version": ("code-file", _file("ops.so.1.json", b"{}")),
    "auto_map": ("remote-code", _config(auto_map={"AutoModel": "modeling_x.M"})),
    "auto_map in a nested processor": (
        "remote-code",
        _file("processor_config.json", {"a": [{"b": {"auto_map": {"AutoProcessor": "p.P"}}}]}),
    ),
    "hidden size of a trillion": ("config-size", _config(hidden_size=10**12)),
    "architecture that is a path": ("config-malformed", _config(architectures=["../../evil"])),
    "duplicate key": (
        "json-malformed",
        _file("config.json", '{"model_type": "a", "model_type": "b"}'),
    ),
    "JSON nested a million deep": ("json-bomb", _file("x.json", b"[" * 10**6 + b"]" * 10**6)),
    "JSON of empty containers": ("json-bomb", _file("x.json", b"[" + b"[]," * 2_000_001 + b"1]")),
    "index that leaves the directory": (
        "index-escapes",
        _file(_INDEX, {"weight_map": {"a": "../../etc/passwd"}}),
    ),
    "index of a missing shard": (
        "index-incomplete",
        _file(_INDEX, {"weight_map": {"a": "model-00001.safetensors"}}),
    ),
    "safetensors header of exabytes": (
        "safetensors-header-too-large",
        _file("model.safetensors", b"\xff\xff\xff\xff\xff\x00\x00\x00{" + bytes(64)),
    ),
    "safetensors that overlap": (
        "safetensors-coverage",
        _file(
            "model.safetensors",
            with_header({"a": _tensor([0, 8], [2]), "b": _tensor([4, 8], [1])}) + bytes(8),
        ),
    ),
    "safetensors with hidden bytes at the end": (
        "safetensors-coverage",
        _file("model.safetensors", with_header({"a": _tensor([0, 8], [2])}) + bytes(4096)),
    ),
    "safetensors with a gap": (
        "safetensors-coverage",
        _file("model.safetensors", with_header({"a": _tensor([8, 16], [2])}) + bytes(16)),
    ),
    "safetensors whose shape overflows": (
        "safetensors-tensor",
        _file("model.safetensors", with_header({"a": _tensor([0, 8], [2**62, 2**62])}) + bytes(8)),
    ),
    "GGUF with a string of exabytes": (
        "gguf-malformed",
        _file(
            "model.gguf", gguf({"a": "b"}).replace(b"\x01" + bytes(7) + b"b", b"\xff" * 8 + b"b")
        ),
    ),
    "GGUF with a template that escapes": (
        "template-internals",
        _file("m.gguf", gguf({"tokenizer.chat_template": "{{ " + _ESCAPE + " }}"})),
    ),
    "template that reaches classes": ("template-internals", _template("{{ " + _ESCAPE + " }}")),
    "template that reaches classes by strings": (
        "template-internals",
        _template("{{ messages['__class__']['__base__'] }}"),
    ),
    "template that reaches classes by the attr filter": (
        "template-internals",
        _template("{{ messages|attr('\\x5f\\x5fclass\\x5f\\x5f') }}"),
    ),
    "template that runs a command": (
        "template-pivot",
        _template("{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}"),
    ),
    "template that maps attributes": (
        "template-internals",
        _template("{{ [messages]|map(attribute='__class__')|list }}"),
    ),
    "template that includes a file": ("template-loads", _template("{% include '/etc/passwd' %}")),
    "template that never ends": (
        "template-hangs",
        _template(
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
            "{% endfor %}{% endfor %}{% endfor %}"
        ),
    ),
    "template that takes all memory": (
        "template-bomb",
        _template(
            "{% set ns = namespace(t='xxxxxxxxxx') %}{% for a in range(60) %}"
            "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}"
        ),
    ),
    "template that adds a script to every answer": (
        "template-markup",
        _template("{{ messages[0].content }}<script src='https://evil.example/x.js'></script>"),
    ),
    "template in a list of templates": (
        "template-internals",
        _file(
            "tokenizer_config.json",
            {"chat_template": [{"name": "tool", "template": "{{ x.__init__ }}"}]},
        ),
    ),
    "template file beside a clean one": (
        "template-internals",
        _file("additional_chat_templates/rag.jinja", "{{ ''.__class__ }}"),
    ),
    "license that is not allowed": (
        "license-not-allowed",
        lambda directory, canary: (benign(directory, license_tag="cc-by-nc-4.0"), None)[1],
    ),
    "license text that differs from its tag": (
        "license-disagrees",
        _file(
            "LICENSE",
            "Permission is hereby granted, free of charge, to any person obtaining a copy",
        ),
    ),
    "license text with a rider": (
        "license-restricted",
        _file("LICENSE", "Apache License Version 2.0, January 2004. Only for non-commercial use."),
    ),
    "name with a right-to-left override": ("name-trick", _file("model\u202egpj.json", "{}")),
    "private key": (
        "secret",
        _file("notes.txt", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n"),
    ),
}


def _scan(directory: Path, policy: WeightScanPolicy | None = None) -> ScanEvidence:
    return scan_weights(
        directory,
        read_snapshot(directory),
        policy or WeightScanPolicy(),
        log_directory=directory.parent / "logs",
    )


def _gate(evidence: ScanEvidence, policy: WeightScanPolicy | None = None) -> Decision:
    policy = policy or WeightScanPolicy()
    return scan_gate([evidence], Policy(weights=policy), required_kinds=("weights",)).decision


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_model_is_blocked_for_its_own_reason_and_not_run(
    name: str, tmp_path: Path
) -> None:
    rule, build = MALICIOUS[name]
    canary = tmp_path / "canary"
    # Without a template: each is rendered in a process of its own.
    directory = benign(tmp_path / "model", template="")
    build(directory, canary)

    # picklescan is a process of its own: started where the rule is one of its.
    scanners = ("structure", "picklescan") if rule.startswith("pickle") else ("structure",)
    policy = WeightScanPolicy(scanners=scanners)
    evidence = _scan(directory, policy)

    found = {finding.rule for finding in evidence.findings}
    # On a busy machine a template that would take all memory runs out of time first.
    assert rule in found or (rule == "template-bomb" and "template-hangs" in found)
    assert _gate(evidence, policy) is Decision.FAIL
    assert all(run.status is ScannerStatus.COMPLETED for run in evidence.runs)
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """The payload of the corpus is live: the test above would see it run."""
    canary = tmp_path / "canary"
    pickle.loads(_pickle(canary))
    assert canary.exists()


def _sharded(directory: Path) -> None:
    benign(directory)
    (directory / "model.safetensors").unlink()
    for shard in ("a", "b"):
        weights = safetensors({shard: ("F16", [2, 2], bytes(8))})
        write(directory, f"model-{shard}.safetensors", weights)
    names = {shard: f"model-{shard}.safetensors" for shard in ("a", "b")}
    write(directory, _INDEX, {"metadata": {"total_size": 16}, "weight_map": names})


def _quantized(directory: Path) -> None:
    benign(directory)
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}}
    write(directory, "config.json", {**CONFIG, "quantization_config": quantization})
    write(
        directory,
        "model.safetensors",
        safetensors({"w": ("I8", [8, 8], bytes(64)), "w_scale": ("BF16", [8, 1], bytes(16))}),
    )


def _gguf(directory: Path) -> None:
    write(
        directory, "model.gguf", gguf({"general.license": "mit", "tokenizer.chat_template": CHAT})
    )
    write(directory, "LICENSE", b"Copyright \xa9 X. Permission is hereby granted, free of charge, "
          b"to any person obtaining a copy")  # fmt: skip


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


BENIGN: dict[str, Callable[[Path], Any]] = {
    "plain": benign,
    "sharded": _sharded,
    "quantized": _quantized,
    "GGUF with an old encoding in its license": _gguf,
    "template that refuses some conversations": _demanding_template,
    "template that names an address": _address_in_template,
    "header length that looks like a pickle": _awkward_header_length,
    "configuration with Infinity": _state_space,
}


@pytest.mark.parametrize("name", BENIGN)
def test_a_benign_model_passes(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    BENIGN[name](directory)

    evidence = _scan(directory)

    assert [f for f in evidence.findings if f.severity != "low"] == []
    assert _gate(evidence) is Decision.PASS


def test_a_pickle_without_danger_passes_where_the_policy_takes_pickles(tmp_path: Path) -> None:
    policy = WeightScanPolicy(formats=(*DEFAULT_FORMATS, ".pkl"))
    directory = benign(tmp_path / "model", template="")
    write(directory, "state.pkl", pickle.dumps({"step": 3, "rates": [0.1, 0.2]}))
    assert _gate(_scan(directory, policy), policy) is Decision.PASS

    write(directory, "state.pkl", _pickle(tmp_path / "canary"))
    assert _gate(_scan(directory, policy), policy) is Decision.FAIL
    assert not (tmp_path / "canary").exists()


def test_a_model_without_a_license_is_blocked_where_the_policy_asks_for_one(tmp_path: Path) -> None:
    directory = benign(tmp_path / "model", template="")
    (directory / "LICENSE").unlink()
    (directory / "README.md").unlink()
    strict = WeightScanPolicy(scanners=("structure",), license_required=True)
    assert _gate(_scan(directory, STRUCTURE), STRUCTURE) is Decision.PASS
    assert _gate(_scan(directory, strict), strict) is Decision.FAIL


@pytest.mark.parametrize("change", ["link", "addition", "truncation"])
def test_a_directory_that_changed_after_it_was_fetched_is_blocked(
    change: str, tmp_path: Path
) -> None:
    directory = benign(tmp_path / "model", template="")
    snapshot = read_snapshot(directory)
    if change == "link":
        (directory / "tokenizer.json").unlink()
        (directory / "tokenizer.json").symlink_to("/etc/hostname")
    elif change == "addition":
        write(directory, "more.json", "{}")
    else:
        write(directory, "LICENSE", "")
    evidence = scan_weights(directory, snapshot, STRUCTURE, log_directory=tmp_path / "logs")
    assert _gate(evidence, STRUCTURE) is Decision.FAIL


def test_a_scanner_that_breaks_is_failed_and_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = benign(tmp_path / "model")
    monkeypatch.setattr("lockgate.adapters.scanners.worker.sys.executable", "/nonexistent/python")
    evidence = _scan(directory)
    assert {run.status for run in evidence.runs} == {ScannerStatus.FAILED}
    assert _gate(evidence) is Decision.FAIL


def test_a_scanner_that_nobody_knows_is_not_a_pass(tmp_path: Path) -> None:
    policy = WeightScanPolicy(scanners=("structure", "crystal-ball"))
    evidence = _scan(benign(tmp_path / "model"), policy)
    assert _gate(evidence, policy) is Decision.FAIL
