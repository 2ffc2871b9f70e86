"""Calibration of the judge: `python -m benchmarks.judge_calibration` writes docs/calibration.md.

For every family of traffic: the false-rollback rate at no difference and at the margin itself, with a
look at every scrape; the false-pass rate at the margin; power and delay for regressions; the same for
other controllers' rules, tuned to the same false-rollback rate; and an SPRT that knows everything.
Seeded: the same numbers every time. It may be stopped and goes on where it was (`--fresh` begins
anew): every thousand traces are written down.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from benchmarks import judge_oracle
from benchmarks.judge_bands import missed
from benchmarks.judge_families import (
    CALM,
    FAMILIES,
    ITL_SIGMA,
    TOKENS,
    TTFT_SIGMA,
    Change,
    Setting,
    simulate,
)
from benchmarks.judge_peers import PEERS, TICK, delays, seen_by, tuned, watched
from benchmarks.judge_report import write_report
from benchmarks.judge_vectorised import (
    SIMULATED,
    WITH_DATA,
    Blocks,
    alpha_of,
    judge_all,
    means,
    outcome,
)
from lockgate.domain.judge import DEFAULT_METRICS, Criticality, JudgeConfig

SEED = 20_240
CHUNK = 500
NULLS = {
    "no difference": Change(),
    "at the margin": Change(latency=1.1, errors=0.015, tokens=1.15, finish=0.35),
    # at ten times a fifth to a third of them would not be beyond the tail's bound: the canary would be within its margin
    "tail at the margin": Change(tail=0.0051, tail_times=20.0),
}
LATENCIES = {f"latency {x:g}x": Change(latency=x) for x in (1.2, 1.3, 2.0, 5.0)}
SHIFTS = {
    **LATENCIES,
    "TTFT tail (5% at 10x)": Change(tail=0.05),
    "ITL tail (5% at 10x)": Change(token_tail=0.05),
    "errors 1% to 3%": Change(errors=0.03),
    "errors 1% to 30%": Change(errors=0.30),
    "answers cut to 60%": Change(tokens=0.6),
    "finish reasons 30% to 60%": Change(finish=0.6),
}
LASTING = ("TTFT tail (5% at 10x)", "errors 1% to 3%")
"""Looked for on traces as long as the time budget, too."""

_WATCHED = ("TTFT", "ITL", "TTFT p95")
SIGNALS_OF = {
    **dict.fromkeys(LATENCIES, ("TTFT", "ITL")),
    "TTFT tail (5% at 10x)": _WATCHED,
    "ITL tail (5% at 10x)": _WATCHED,
    "errors 1% to 3%": ("errors",),
    "errors 1% to 30%": ("errors",),
    "answers cut to 60%": ("length",),
    "finish reasons 30% to 60%": ("reasons",),
}
"""What the peers are given to look at, for each regression."""

SETTING, LONG = Setting(), Setting(seconds=1800.0)
CONFIG = JudgeConfig()


def upper_bound(hits: int, n: int, level: float = 0.95) -> float:
    """Clopper-Pearson upper confidence bound of a rate."""
    return 1.0 if hits >= n else float(beta.ppf(level, hits + 1, n - hits))


def _rng(*key: object) -> np.random.Generator:
    digest = np.frombuffer(repr(key).encode().ljust(64, b"."), dtype=np.uint8)
    return np.random.default_rng([SEED, *digest.tolist()])


def _summary(times: np.ndarray) -> dict[str, float | None]:
    middle = float(np.median(times))
    return {
        "power": float(np.isfinite(times).mean()),
        "median": middle if math.isfinite(middle) else None,
    }


def false_rates(family: str, null: str, setting: Setting, chunk: int) -> dict[str, int]:
    """Counts in one chunk: traces, false rollbacks, and false passes a metric."""
    key = (family, null, chunk, setting.seconds)
    pair = simulate(family, setting, CHUNK, NULLS[null], _rng(*key))
    edge = {"at the margin": SIMULATED, "tail at the margin": ("ttft_tail",)}.get(null, ())
    found = outcome(judge_all(*pair, setting, CONFIG, within=edge), setting, CONFIG)
    counts = {"traces": CHUNK, "failed": int(np.isfinite(found.failed).sum())}
    if edge:
        counts |= {f"passed {m}": int(np.isfinite(found.within[m]).sum()) for m in edge}
    return counts


def power(family: str, name: str, setting: Setting, traces: int) -> dict[str, Any]:
    """Power within the trace and median delay (seconds) of the whole verdict, and of TTFT alone."""
    pair = simulate(family, setting, traces, SHIFTS[name], _rng(family, name, setting.seconds))
    found = judge_all(*pair, setting, CONFIG, within=())
    out: dict[str, Any] = _summary(outcome(found, setting, CONFIG).failed)
    out |= {m: _summary(outcome(found, setting, CONFIG, m).failed) for m in ("ttft", "itl")}
    return out | {"traces": traces}


def passing(family: str, traces: int) -> dict[str, Any]:
    """Of canaries that are no different: how many each required metric shows to be within its margin in the time
    budget, and the median time to it; the same of all of them together."""
    pair = simulate(family, LONG, traces, Change(), _rng(family, "passing", LONG.seconds))
    required = [m for m in SIMULATED if DEFAULT_METRICS[m].criticality is Criticality.REQUIRED]
    found = outcome(judge_all(*pair, LONG, CONFIG, within=required), LONG, CONFIG).within
    times = {name: found[name] for name in required}
    times["all"] = np.maximum.reduce(list(times.values()))
    return {"traces": traces} | {name: _summary(taken) for name, taken in times.items()}


def peers(
    setting: Setting,
    shifts: Sequence[str],
    rules: Sequence[str],
    traces: int,
    measured: float | None,
) -> dict[str, Any]:
    """Peers on what they can watch, tuned in hindsight to each family and, as one setting, to all of
    them: to alpha, and to the rate that ours was `measured` at."""
    changes = {"null": NULLS["at the margin"], **{name: SHIFTS[name] for name in shifts}}
    seen = {
        (family, name): watched(
            simulate(family, setting, traces, change, _rng(family, "peers", name, setting.seconds)),
            setting,
        )
        for family in FAMILIES
        for name, change in changes.items()
    }
    out: dict[str, Any] = {}
    for signal in dict.fromkeys(s for name in shifts for s in SIGNALS_OF[name]):
        for peer in rules:
            rule = PEERS[peer]
            view = {at: seen_by(peer, signal, each[signal]) for at, each in seen.items()}
            nulls = {f: view[f, "null"] for f in FAMILIES}
            knobs = {
                "everywhere": tuned(rule, list(nulls.values()), CONFIG.alpha),
                "same": tuned(rule, list(nulls.values()), measured or CONFIG.alpha),
            }
            rows: dict[str, dict[str, Any]] = {}
            for family in FAMILIES:
                own = knobs | {"own": tuned(rule, [nulls[family]], CONFIG.alpha)}
                rows[family] = {
                    name: {
                        how: _summary(delays(rule, knob, *view[family, name], TICK))
                        for how, knob in own.items()
                    }
                    for name in shifts
                    if signal in SIGNALS_OF[name]
                }
            everywhere = knobs["everywhere"]
            out[f"{peer}, {signal}"] = {
                "everywhere": everywhere if math.isfinite(everywhere) else None,
                "families": rows,
            }
    return out | {"traces": traces, "measured": measured}


def _measured(data: dict[str, Any]) -> float | None:
    """Ours: the rate of false rollbacks at the margin in the worst family."""
    found = [nulls.get("at the margin") for nulls in data.get("false", {}).values()]
    rates = [counts["failed"] / counts["traces"] for counts in found if counts]
    return max(rates, default=None)


def oracle(family: str, traces: int) -> dict[str, Any]:
    """The better of TTFT and ITL for an SPRT that knows everything, with the same share of alpha."""
    out: dict[str, Any] = {"traces": traces}
    for name, change in LATENCIES.items():
        for metric in ("ttft", "itl"):
            alphas = CONFIG.alpha, alpha_of(metric, CONFIG)
            took = judge_oracle.latency(
                family, metric, change.latency, 0.1, alphas, SETTING, traces, SEED
            )
            for how, times in zip(("all", "share"), took, strict=True):
                out.setdefault(name, {})[f"{metric} {how}"] = _summary(times)
    return out


def steady(traces: int) -> dict[str, Any]:
    """Independent requests, replicas declared not to drift: mean seconds of ours and of the SPRT, TTFT
    alone and ITL alone, both with the same share of alpha."""
    config = CONFIG.model_copy(update={"drift_sd": 0.0})
    out: dict[str, Any] = {"traces": traces}
    known = {"ttft": (TTFT_SIGMA, SETTING.rate), "itl": (ITL_SIGMA, SETTING.rate * TOKENS)}
    for shift in (1.2, 1.3, 1.5, 2.0, 5.0):
        setting = Setting(seconds=2400.0 if shift < 1.3 else 600.0)
        pair = simulate("iid", setting, traces, Change(latency=shift), _rng("steady", shift))
        blocks = Blocks.of(setting, config)
        b, c = blocks.of_tracks(*pair)
        for metric in ("ttft", "itl"):
            alpha = alpha_of(metric, config)
            sums = getattr(b, metric), getattr(c, metric)
            course = means(*sums, metric, config, blocks, within=False)
            took = blocks.first(course.worse >= -math.log(alpha))
            scatter, rate = known[metric]
            out[f"{metric} {shift:g}x"] = {
                "seconds": setting.seconds,
                "ours": _summary(took) | {"mean": float(np.minimum(took, setting.seconds).mean())},
                "sprt": judge_oracle.independent_seconds(scatter, shift, 0.1, alpha, rate),
            }
    return out


def bands(family: str, setting: Setting, traces: int) -> dict[str, float]:
    """How often the displayed bands of quantiles miss."""
    return missed(family, setting, traces, CONFIG, _rng(family, "bands", setting.seconds))


def counts() -> dict[str, float]:
    """Mean seconds of an SPRT for the simulated regressions of shares, with all of alpha and with the
    metric's share of it."""
    rate, all_ = SETTING.rate, CONFIG.alpha
    errors, mix, tails = (
        alpha_of(name, CONFIG) for name in ("gateway_errors", "finish_reasons", "ttft_tail")
    )
    cases = {
        "errors 1% to 3%": (0.01, 0.03, 0.005, errors),
        "errors 1% to 30%": (0.01, 0.30, 0.005, errors),
        "slow requests 0.14% to 4% (`iid`, beyond 0.75 s)": (0.0014, 0.04, 0.005, tails),
        "finish reasons 30% to 60%": (0.3, 0.6, 0.05, mix),
    }
    return {
        f"{name}, {how}": judge_oracle.share_seconds(b, c, margin, alpha, rate)
        for name, (b, c, margin, share) in cases.items()
        for how, alpha in (("all of alpha", all_), ("its share", share))
    }


def _work(given: argparse.Namespace, data: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """(place in the data, function, arguments) of everything that is still to be computed."""
    edge = "tail at the margin"
    for part, setting, traces, tails, families in (
        ("false", SETTING, given.traces, given.tail_traces, [*given.families, CALM]),
        ("long", LONG, given.long, given.long_tail_traces, [*given.long_families, CALM]),
    ):
        for chunk in range(-(-max(traces, tails) // CHUNK)):
            for family in families:
                for null in NULLS:
                    done = data.get(part, {}).get(family, {}).get(null, {}).get("chunks", [])
                    wanted = chunk * CHUNK < (tails if null == edge else traces)
                    if part in given.parts and chunk not in done and wanted:
                        yield (part, family, null, chunk), false_rates, (
                            family, null, setting, chunk)  # fmt: skip
    for family in [*given.families, CALM]:
        if "passing" in given.parts and family not in data.get("passing", {}):
            yield ("passing", family), passing, (family, given.lasting_traces)
    for family in given.families:
        for part, setting, names, traces in (
            ("power", SETTING, SHIFTS, given.power_traces),
            ("lasting", LONG, LASTING, given.lasting_traces),
        ):
            known = data.get(part, {}).get(family, {})
            for name in names:
                if part in given.parts and name not in known:
                    yield (part, family, name), power, (family, name, setting, traces)
        for name, setting in (("short", SETTING), ("long", LONG)):
            if "bands" in given.parts and name not in data.get("bands", {}).get(family, {}):
                arguments = family, setting, given.bands_traces
                yield ("bands", family, name), bands, arguments
        if "oracle" in given.parts and family not in data.get("oracle", {}):
            yield ("oracle", family), oracle, (family, given.oracle_traces)
    rate = _measured(data)
    if "peers" in given.parts and "peers" not in data:
        yield ("peers",), peers, (SETTING, list(SHIFTS), list(PEERS), given.peer_traces, rate)
    if "lasting" in given.parts and "peers lasting" not in data:
        # Kayenta's rank sums over so many looks take too long here
        rules = [peer for peer in PEERS if peer != "Kayenta"]
        yield ("peers lasting",), peers, (LONG, LASTING, rules, given.lasting_traces, rate)
    if "oracle" in given.parts and "counts" not in data:
        yield ("counts",), counts, ()
    if "steady" in given.parts and "steady" not in data:
        yield ("steady",), steady, (given.oracle_traces,)


def _part(place: tuple[Any, ...]) -> str:
    return {"counts": "oracle", "peers lasting": "lasting"}.get(place[0], str(place[0]))


def _keep(data: dict[str, Any], place: tuple[Any, ...], value: dict[str, Any]) -> None:
    if place[0] in ("false", "long"):
        part, family, null, chunk = place
        counts = data.setdefault(part, {}).setdefault(family, {}).setdefault(null, {})
        for name, number in value.items():
            counts[name] = counts.get(name, 0) + number
        counts["chunks"] = sorted([*counts.get("chunks", []), chunk])
        return
    *path, last = place
    for key in path:
        data = data.setdefault(key, {})
    data[last] = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=10_000, help="a family, for the headline")
    parser.add_argument("--long", type=int, default=2_000, help="traces of 1800 s a family")
    parser.add_argument(
        "--tail-traces", type=int, default=10_000, help="with the tail at its margin"
    )
    parser.add_argument("--long-tail-traces", type=int, default=4_000, help="the same of 1800 s")
    parser.add_argument(
        "--lasting-traces", type=int, default=400, help="of 1800 s, with a regression"
    )
    parser.add_argument("--power-traces", type=int, default=1_000)
    parser.add_argument("--peer-traces", type=int, default=1_000)
    parser.add_argument("--oracle-traces", type=int, default=400)
    parser.add_argument("--bands-traces", type=int, default=1_000)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--long-families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parts = ["false", "power", "oracle", "peers", "steady", "lasting", "long", "bands", "passing"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this; go on later")
    parser.add_argument("--fresh", action="store_true", help="forget what was computed before")
    parser.add_argument("--data", type=Path, default=Path("docs/calibration.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/calibration.md"))
    given = parser.parse_args()
    began = time.monotonic()
    data = json.loads(given.data.read_text()) if given.data.exists() and not given.fresh else {}
    about = {
        "rate": SETTING.rate, "seconds": SETTING.seconds, "scrape": SETTING.block,
        "block": CONFIG.block_s, "long": LONG.seconds, "seed": SEED, "metrics": len(WITH_DATA),
    }  # fmt: skip
    if data.get("setting") != about:
        data = {"setting": about, "cpu_seconds": 0.0}

    def late() -> bool:
        return time.monotonic() - began > 60.0 * given.minutes

    with ProcessPoolExecutor(given.processes) as pool:
        work = list(_work(given, data))
        order = [p for part in given.parts for p in work if _part(p[0]) == part]
        waiting = iter(order)
        running = {}
        for place, function, arguments in waiting:
            running[pool.submit(_timed, function, arguments)] = place
            while len(running) >= given.processes or (late() and running):
                finished = next(as_completed(running))
                spent, value = finished.result()
                data["cpu_seconds"] += spent
                _keep(data, running.pop(finished), value)
                _write(given, data)
            if late():
                break
        for finished in as_completed(running):
            spent, value = finished.result()
            data["cpu_seconds"] += spent
            _keep(data, running[finished], value)
        _write(given, data)
    left = len(list(_work(given, data)))
    print(f"{time.monotonic() - began:.0f} s; {left} pieces of work left", flush=True)


def _timed(function: Any, arguments: tuple[Any, ...]) -> tuple[float, Any]:
    began = time.process_time()
    value = function(*arguments)
    return time.process_time() - began, value


def _write(given: argparse.Namespace, data: dict[str, Any]) -> None:
    fresh = given.data.with_suffix(".new")
    fresh.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    fresh.replace(given.data)
    given.out.write_text(write_report(data, upper_bound))


if __name__ == "__main__":
    main()
