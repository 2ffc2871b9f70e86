"""Loads as data: what a profile plans, what of it is told to the generator, and how its answers are counted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lockgate.adapters.benchmark import profile_identities
from lockgate.adapters.benchmark.generator import bench_arguments, trace_lines
from lockgate.adapters.benchmark.results import read_load
from lockgate.domain.digests import Digest
from lockgate.domain.load import BenchmarkProfile, ServiceLevel, parse_trace, planned
from lockgate.domain.spec import BenchmarkSpec
from lockgate.errors import BenchmarkError, UsageError

LOG = Path("benchmark.log")


def profile(**more: Any) -> BenchmarkProfile:
    return BenchmarkProfile.model_validate({"name": "load", **more})


@pytest.mark.parametrize(("burstiness", "spread"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_open_loop_arrivals_have_the_rate_and_the_burstiness_declared(
    burstiness: float, spread: float
) -> None:
    plan = planned(profile(requests=20_000, rate=4.0, burstiness=burstiness), block=0)
    gaps = np.diff([request.at for request in plan])
    assert 1 / gaps.mean() == pytest.approx(4.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(spread, rel=0.05)


def test_lengths_follow_their_distribution_and_stay_within_its_bounds() -> None:
    drawn = planned(
        profile(
            requests=5000,
            prompt_tokens={"distribution": "lognormal", "median": 80, "sigma": 0.7, "most": 400},
            output_tokens={"distribution": "uniform", "least": 10, "most": 20},
        ),
        block=0,
    )
    prompts, answers = [r.prompt_tokens for r in drawn], [r.output_tokens for r in drawn]
    assert np.median(prompts) == pytest.approx(80, rel=0.05)
    assert max(prompts) == 400
    assert set(answers) == set(range(10, 21))
    seen = {"distribution": "empirical", "values": [7, 7, 7, 900]}
    empirical = planned(profile(requests=4000, prompt_tokens=seen), block=0)
    assert np.mean([r.prompt_tokens == 7 for r in empirical]) == pytest.approx(0.75, abs=0.03)


def test_a_block_is_the_same_for_every_candidate_and_no_two_blocks_share_a_prompt() -> None:
    load = profile(requests=8, rate=3.0)
    assert planned(load, block=2) == planned(load, block=2)
    prompts = [r.prompt for block in range(-1, 20) for r in planned(load, block=block)]
    assert len(set(prompts)) == len(prompts)


def test_a_recorded_trace_is_replayed_with_its_own_times_and_lengths() -> None:
    text = "\n".join(
        json.dumps({"at": 10 + k / 2, "prompt_tokens": 5 + k, "output_tokens": 3}) for k in range(8)
    )
    load = profile(requests=4, trace={"path": "t.jsonl", "speed": 2.0})
    second = planned(load, block=1, trace=parse_trace(text))
    assert [r.at for r in second] == [0.0, 0.25, 0.5, 0.75]
    assert [r.prompt_tokens for r in second] == [9, 10, 11, 12]
    with pytest.raises(ValueError, match="12 are needed"):
        planned(load, block=2, trace=parse_trace(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"at": 0, "prompt_tokens": 0, "output_tokens": 1}',
        '{"at": NaN, "prompt_tokens": 1, "output_tokens": 1}',
        '{"at": 1, "prompt_tokens": 1, "output_tokens": 1}\n'
        '{"at": 0, "prompt_tokens": 1, "output_tokens": 1}',
    ],
)
def test_what_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|rows"):
        parse_trace(text)


def test_a_trace_counts_by_its_bytes_and_not_by_where_it_lies(tmp_path: Path) -> None:
    row = '{"at": 0, "prompt_tokens": 1, "output_tokens": 1}\n'
    for name in ("here", "there"):
        (tmp_path / name).write_text(row)

    def spec(name: str, digest: Digest | None = None) -> BenchmarkSpec:
        trace = {"path": str(tmp_path / name), "digest": digest}
        return BenchmarkSpec.model_validate({"profiles": [{"name": "load", "trace": trace}]})

    assert profile_identities(spec("here")) == profile_identities(spec("there"))
    (tmp_path / "there").write_text(row * 2)
    assert profile_identities(spec("here")) != profile_identities(spec("there"))
    with pytest.raises(UsageError, match="the spec says"):
        profile_identities(spec("here", Digest.of_bytes(b"another")))
    with pytest.raises(UsageError, match="cannot be used"):
        profile_identities(spec("nowhere"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 1.0, "concurrency": 4},
        {"rate": 1.0, "sweep": {"rate": [1, 2]}},
        {"burstiness": 0.5},
        {"sweep": {"rate": [2, 1]}},
        {"sweep": {"rate": [1, 2], "concurrency": [1, 2]}},
        {"prompt_tokens": {"distribution": "uniform"}},
        {"prompt_tokens": {"distribution": "uniform", "least": 9, "most": 8}},
    ],
)
def test_a_load_that_means_two_things_or_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        profile(**wrong)


def test_a_sweep_ends_where_more_load_gives_no_more_throughput() -> None:
    sweep = profile(sweep={"concurrency": [1, 2, 4, 8]}).sweep
    assert sweep is not None
    assert not sweep.saturated([10])
    assert not sweep.saturated([10, 19])
    assert sweep.saturated([10, 19, 19.5])
    assert profile(sweep={"rate": [1, 2]}).at_level(2.0).rate == 2.0


@dataclass(frozen=True)
class Somewhere:
    base_url: str = "http://127.0.0.1:1/v1"
    model_name: str = "smol"


def test_the_generator_is_told_the_planned_load_in_its_own_words() -> None:
    def told(load: BenchmarkProfile) -> str:
        words = bench_arguments(
            load,
            planned(load, block=0),
            endpoint=Somewhere(),
            tokenizer=Path("m"),
            trace=Path("t"),
            result=Path("d/r"),
        )
        return " ".join(words)

    closed, opened = told(profile(concurrency=3)), told(profile(rate=2.0))
    assert "--no-self-timed --max-concurrency 3" in closed
    assert "--self-timed" in opened.split()
    assert "--max-concurrency" not in opened
    plan = planned(profile(requests=4, prompt_tokens=40, output_tokens=5), block=0)
    rows = [json.loads(line) for line in trace_lines(plan).splitlines()]
    assert [(r["input_length"], r["output_length"]) for r in rows] == [(40, 5)] * 4
    chunks = [number for row in rows for number in row["hash_ids"]]
    assert len(set(chunks)) == len(chunks) == 4 * 3


def raw(**more: Any) -> dict[str, Any]:
    """Four requests, due at 0, 1, 2, 3; the third was sent 0.5 s late."""
    return {
        "start_times": [100.0, 101.0, 102.5, 103.0],
        "ttfts": [0.1] * 4,
        "itls": [[0.01, 0.03]] * 4,
        "latencies": [0.14] * 4,
        "output_lens": [3] * 4,
        "errors": [""] * 4,
        "duration": 4.0,
        **more,
    }


EVERY_SECOND = parse_trace(
    "\n".join(f'{{"at": {k}, "prompt_tokens": 10, "output_tokens": 3}}' for k in range(4))
)
RECORDED = profile(requests=4, trace={"path": "t"})
PLAN = planned(RECORDED, block=0, trace=EVERY_SECOND)


def test_latency_counts_from_when_a_request_was_due_however_late_it_was_sent() -> None:
    load = read_load(RECORDED, PLAN, raw(), LOG)
    result = load.result(RECORDED, ServiceLevel(ttft_ms=200))
    assert result.requests["ttft_ms"] == pytest.approx((100, 100, 600, 100))
    assert result.requests["e2e_ms"] == pytest.approx((140, 140, 640, 140))
    assert result.requests["tpot_ms"] == pytest.approx((20, 20, 20, 20))
    assert result.requests["itl_max_ms"] == pytest.approx((30, 30, 30, 30))
    assert (result.kept_service_level, result.goodput_per_second) == (3, 0.75)
    assert result.output_tokens_per_second == 3.0


def test_an_answer_that_broke_off_or_is_of_another_length_is_failed() -> None:
    load = read_load(
        RECORDED, PLAN, raw(errors=["", "reset", "", ""], output_lens=[3, 0, 2, 3]), LOG
    )
    assert (len(load.answered), load.failed) == (2, 2)


@pytest.mark.parametrize(
    "broken",
    [
        {"ttfts": [0.1] * 3},
        {"errors": [""]},
        {"latencies": [None] * 4},
        {"latencies": [-1.0] * 4},
        {"duration": None},
        {"duration": 0.0},
        {name: value[:3] for name, value in raw().items() if isinstance(value, list)},
    ],
)
def test_a_result_that_is_not_whole_is_an_error(broken: dict[str, Any]) -> None:
    with pytest.raises(BenchmarkError, match="incomplete"):
        read_load(RECORDED, PLAN, raw(**broken), LOG)
