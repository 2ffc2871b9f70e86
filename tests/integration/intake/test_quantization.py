"""Conversion and quantization of a real model in the quantization environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lockgate.adapters.quantization import convert_gguf, quantize, read_calibration
from lockgate.adapters.scanners import scan_weights
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.gates import Decision
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import Policy, WeightScanPolicy
from lockgate.domain.spec import CalibrationSpec, Recipe
from lockgate.errors import EnvironmentMissing, QuantizationError, UsageError
from tests.integration.intake.conftest import CARD


def _passes_the_scan(directory: Path, logs: Path) -> bool:
    evidence = scan_weights(
        directory, read_snapshot(directory), WeightScanPolicy(), log_directory=logs
    )
    result = scan_gate([evidence], Policy(), now=datetime.now(UTC), required_kinds=("weights",))
    return result.decision is Decision.PASS


def test_a_converted_model_is_complete_readable_and_clean(bf16: Path, tmp_path: Path) -> None:
    names = {path.name for path in bf16.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md"} <= names
    assert "chat_template.jinja" in names
    assert {path.stat().st_mode & 0o777 for path in bf16.iterdir()} == {0o644}
    tokenizer = json.loads((bf16 / "tokenizer_config.json").read_text())
    # As the GGUF file says; transformers alone makes the start token the end token.
    assert tokenizer["eos_token"] == "<|im_end|>"
    assert _passes_the_scan(bf16, tmp_path)


def test_the_same_gguf_file_gives_the_same_snapshot(
    bf16: Path, quantization_python: Path, demo_gguf: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    convert_gguf(quantization_python, demo_gguf, again, card=CARD, log=tmp_path / "log")
    assert read_snapshot(again) == read_snapshot(bf16)


def test_int8_quantization_twice_gives_the_same_clean_snapshot(
    bf16: Path, quantization_python: Path, tmp_path: Path
) -> None:
    fractions: list[float] = []
    reports = [
        quantize(
            quantization_python,
            bf16,
            tmp_path / name,
            Recipe.W8A8_RTN,
            log=tmp_path / f"{name}.log",
            progress=lambda fraction, what: fractions.append(fraction),
        )
        for name in ("one", "two")
    ]
    assert read_snapshot(tmp_path / "one") == read_snapshot(tmp_path / "two")
    assert reports[0].details["layers"] == 210
    assert 0.55 < reports[0].weight_bytes / reports[0].source_bytes < 0.65
    assert fractions
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "int-quantized"
    for name in ("LICENSE", "README.md", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "one" / name).read_bytes() == (bf16 / name).read_bytes()
    assert _passes_the_scan(tmp_path / "one", tmp_path)
    assert str(tmp_path) not in (tmp_path / "one" / "config.json").read_text()


def test_int4_groups_fit_the_model(bf16: Path, quantization_python: Path, tmp_path: Path) -> None:
    report = quantize(
        quantization_python, bf16, tmp_path / "w4", Recipe.W4A16_RTN, log=tmp_path / "log"
    )
    assert report.details["group_size"] == 64  # 128 does not divide this model's 576
    assert report.weight_bytes < 120_000_000


def _broken(bf16: Path, tmp_path: Path, how: str) -> Path:
    source = tmp_path / "broken"
    shutil.copytree(bf16, source)
    if how == "weights cut off":
        with (source / "model.safetensors").open("r+b") as file:
            file.truncate(100_000_000)
    else:
        # Bytes of all ones are NaN in bfloat16.
        with (source / "model.safetensors").open("r+b") as file:
            file.seek(-4000, os.SEEK_END)
            file.write(b"\xff" * 4000)
    return source


@pytest.mark.parametrize("how", ["weights cut off", "weights not finite"])
def test_a_damaged_model_is_refused_and_leaves_nothing(
    how: str, bf16: Path, quantization_python: Path, tmp_path: Path
) -> None:
    source = _broken(bf16, tmp_path, how)
    target = tmp_path / "out" / "target"
    with pytest.raises(QuantizationError) as caught:
        quantize(quantization_python, source, target, Recipe.W8A8_RTN, log=tmp_path / "log")
    assert caught.value.log == tmp_path / "log"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_calibrated_recipe_twice_gives_the_same_model_and_says_what_it_looked_at(
    bf16: Path, quantization_python: Path, tmp_path: Path
) -> None:
    calibration = read_calibration(CalibrationSpec(samples=4, max_tokens=32))
    said: list[str] = []
    reports = [
        quantize(
            quantization_python,
            bf16,
            tmp_path / name,
            Recipe.W8A8_SMOOTHQUANT,
            calibration=calibration,
            log=tmp_path / f"{name}.log",
            progress=lambda fraction, what: said.append(what),
        )
        for name in ("one", "two")
    ]
    assert read_snapshot(tmp_path / "one") == read_snapshot(tmp_path / "two")
    seen = reports[0].calibration
    assert seen is not None
    assert (seen.dataset, seen.samples, seen.digest) == ("builtin", 4, calibration.identity.digest)
    assert 4 < seen.tokens <= 4 * 32
    assert sum("calibrate: layer" in what for what in said) > 20
    assert reports[0].generated
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "int-quantized"


def test_a_quantized_model_is_not_quantized_again(bf16: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(bf16, source)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (source / "config.json").write_text(json.dumps(config))
    nobody = Path("/nonexistent/python")
    with pytest.raises(UsageError, match=r"quantized already: gptq \(int4, groups of 128\)"):
        quantize(nobody, source, tmp_path / "t", Recipe.W8A8_RTN, log=tmp_path / "log")


def test_a_worker_that_takes_too_long_is_ended_with_its_group(
    bf16: Path, quantization_python: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match="stopped after"):
        quantize(
            quantization_python,
            bf16,
            tmp_path / "out" / "t",
            Recipe.W8A8_RTN,
            log=tmp_path / "log",
            timeout=1.0,
        )
    assert list((tmp_path / "out").iterdir()) == []
    assert _workers_on(tmp_path) == []


CALLER = """
import sys
from pathlib import Path
from lockgate.adapters.quantization import quantize
from lockgate.domain.spec import Recipe
python, source, target = map(Path, sys.argv[1:])
quantize(python, source, target, Recipe.W8A8_RTN, log=target.parent / "log",
         progress=lambda fraction, what: print(what, flush=True))
"""


def _workers_on(place: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                target = os.readlink(entry / "fd" / "2")
            except OSError:
                continue
            if target.startswith(str(place)):
                found.append(int(entry.name))
    return found


def test_no_worker_outlives_a_caller_that_was_killed(
    bf16: Path, quantization_python: Path, tmp_path: Path
) -> None:
    arguments = [str(quantization_python), str(bf16), str(tmp_path / "out")]
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    assert "import" in caller.stdout.readline()
    assert _workers_on(tmp_path) != []
    caller.kill()
    caller.wait()
    caller.stdout.close()
    gone = threading.Event()
    for _ in range(600):
        if not _workers_on(tmp_path):
            gone.set()
            break
        time.sleep(0.1)
    assert gone.is_set()


def test_what_is_no_model_is_told_before_a_process_is_started(tmp_path: Path) -> None:
    nobody = Path("/nonexistent/python")
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(QuantizationError, match="not a GGUF file"):
        convert_gguf(nobody, tmp_path / "x.gguf", tmp_path / "t", card=CARD, log=tmp_path / "log")
    with pytest.raises(QuantizationError, match=r"config\.json"):
        quantize(nobody, tmp_path, tmp_path / "t", Recipe.W8A8_RTN, log=tmp_path / "log")
    with pytest.raises(UsageError):
        quantize(nobody, tmp_path, tmp_path / "t", Recipe.NONE, log=tmp_path / "log")


def test_a_missing_environment_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EnvironmentMissing, match="cannot be started"):
        quantize(
            Path("/nonexistent/python"),
            tmp_path,
            tmp_path / "out" / "t",
            Recipe.W8A8_RTN,
            log=tmp_path / "log",
        )
    assert list((tmp_path / "out").iterdir()) == []
