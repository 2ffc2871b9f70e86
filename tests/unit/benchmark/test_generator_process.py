"""The conversation with the load generator's process, with a stand-in for vLLM in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lockgate.adapters.benchmark import Subject, benchmark, compare
from lockgate.adapters.benchmark.generator import load_generator
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Fingerprint
from lockgate.domain.load import BenchmarkProfile, planned
from lockgate.domain.spec import BenchmarkSpec
from lockgate.errors import BenchmarkError

STAND_IN = '''
import argparse, json, pathlib, sys, time
def add_cli_args(parser):
    for name in ("base-url", "dataset-path", "result-dir", "result-filename", "max-concurrency"):
        parser.add_argument("--" + name)
def main(args):
    """Answers as fast as the server's name says, in milliseconds; `dies` and `hangs` do so."""
    name = args.base_url.removeprefix("http://")
    if name == "dies":
        raise SystemExit("no route")
    if name == "hangs":
        time.sleep(60)
    rows = [json.loads(line) for line in pathlib.Path(args.dataset_path).read_text().splitlines()]
    count, seconds = len(rows), float(name) / 1000
    if args.max_concurrency:
        seconds /= min(int(args.max_concurrency), 2)
    result = {
        "start_times": [row["timestamp"] for row in rows], "ttfts": [seconds] * count,
        "itls": [[seconds] * (row["output_length"] - 1) for row in rows],
        "latencies": [seconds * row["output_length"] for row in rows],
        "output_lens": [row["output_length"] for row in rows], "errors": [""] * count,
        "duration": sum(seconds * row["output_length"] for row in rows), "mean_ttft_ms": float("nan"),
    }
    (pathlib.Path(args.result_dir) / args.result_filename).write_text(json.dumps(result))
'''
PARSER = """
import argparse
class FlexibleArgumentParser(argparse.ArgumentParser):
    def parse_args(self, words):
        return self.parse_known_args(words)[0]
"""
MARK = Fingerprint(
    hardware=Digest.of_bytes(b"here"),
    cpu="p",
    cores=1,
    engine="e",
    engine_version="0",
    arguments=(),
)
CLOSED = BenchmarkProfile(name="closed", requests=8, output_tokens=4)


@dataclass(frozen=True)
class Server:
    base_url: str
    model_name: str = "smol"


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for path, text in (("benchmarks/serve.py", STAND_IN), ("utils/argparse_utils.py", PARSER)):
        module = tmp_path / "vllm" / path
        module.parent.mkdir(parents=True)
        module.write_text(text)
        (module.parent / "__init__.py").touch()
    (tmp_path / "vllm" / "__init__.py").touch()
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    yield Path(sys.executable)


def subject(name: str) -> Subject:
    return Subject(Digest.of_bytes(name.encode()), Server(f"http://{name}"), MARK)


def test_one_process_carries_out_one_load_after_another(python: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with load_generator(python, tokenizer=tmp_path, log=log, timeout=60.0) as generator:
        for name in ("100", "200"):
            plan = planned(CLOSED, block=0)
            raw = generator.send(Server(f"http://{name}"), CLOSED, plan, timeout=10)
            assert raw["ttfts"] == [int(name) / 1000] * 8
            assert raw["mean_ttft_ms"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "message"), [("dies", "no route"), ("hangs", "did not end")])
def test_a_generator_that_dies_or_hangs_is_an_error_with_its_log(
    python: Path, tmp_path: Path, name: str, message: str
) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(BenchmarkError, match=message) as caught,
        load_generator(python, tokenizer=tmp_path, log=log, timeout=60.0) as generator,
    ):
        generator.send(Server(f"http://{name}"), CLOSED, planned(CLOSED, block=0), timeout=1)
    assert caught.value.log == log


def test_an_environment_without_the_generator_is_an_error(tmp_path: Path) -> None:
    nowhere, plan = tmp_path / "python", planned(CLOSED, block=0)
    with (
        pytest.raises(BenchmarkError, match="status 127"),
        load_generator(nowhere, tokenizer=tmp_path, log=tmp_path / "log", timeout=60) as generator,
    ):
        generator.send(Server("http://100"), CLOSED, plan, timeout=10)


def test_a_benchmark_covers_every_profile_and_a_sweep_ends_at_saturation(
    python: Path, tmp_path: Path
) -> None:
    curve = BenchmarkProfile.model_validate(
        {"name": "curve", "requests": 4, "sweep": {"concurrency": [1, 2, 4, 8]}}
    )
    found = benchmark(
        Server("http://100"),
        BenchmarkSpec(profiles=(CLOSED, curve)),
        subject=MARK.hardware,
        fingerprint=MARK,
        serving_python=python,
        model_dir=tmp_path,
        log_dir=tmp_path / "logs",
    )
    closed, swept = found.profiles
    assert closed.ttft_ms["p50"] == pytest.approx(100.0)
    # The stand-in gains nothing beyond two at once.
    assert [point.level for point in swept.curve] == [1, 2, 4]
    assert swept.output_tokens_per_second == pytest.approx(20.0)
    assert (tmp_path / "logs" / "benchmark-curve.json").exists()


def test_two_are_put_under_the_same_load_in_turn(python: Path, tmp_path: Path) -> None:
    measured = compare(
        subject("120"),
        subject("100"),
        BenchmarkSpec(profiles=(CLOSED,)),
        serving_python=python,
        model_dir=tmp_path,
        log_dir=tmp_path / "logs",
    )
    pairs = measured.comparison.pairs
    assert len(pairs) == 8
    assert {pair.candidate_first for pair in pairs} == {True, False}
    assert all(pair.candidate.ttft == pytest.approx(120.0) for pair in pairs)
    assert all(pair.stable.ttft == pytest.approx(100.0) for pair in pairs)
    assert measured.candidate.profiles[0].completed == 8
    assert measured.comparison.stable_benchmark.profiles[0].completed == 8
