"""Calibration of the judge: `python -m benchmarks.judge_calibration` writes docs/calibration.md.

For every family of traffic: the false-rollback rate at no difference and at the margin itself, with a
look at every block; the false-pass rate at the margin; power and delay for regressions; the same for
other controllers' rules, tuned to the same false-rollback rate; and an SPRT that knows everything.
Seeded: the same numbers every time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from scipy.stats import beta

from benchmarks.judge_families import FAMILIES, TTFT_SIGMA, Change, Setting, TrackBlocks, simulate
from benchmarks.judge_peers import PEERS, delays, tuned
from benchmarks.judge_report import write_report
from benchmarks.judge_vectorised import alpha_of, judge_all, means
from lockgate.domain.judge import JudgeConfig

SEED = 20_240
NULLS = {
    "no difference": Change(),
    "at the margin": Change(latency=1.1, errors=0.015, tokens=1.15, finish=0.35),
}
SHIFTS = {
    "latency 1.2x": Change(latency=1.2),
    "latency 1.3x": Change(latency=1.3),
    "latency 2x": Change(latency=2.0),
    "latency 5x": Change(latency=5.0),
    "TTFT tail (5% at 10x)": Change(tail=0.05),
    "errors 1% to 3%": Change(errors=0.03),
    "errors 1% to 30%": Change(errors=0.30),
    "answers cut to 60%": Change(tokens=0.6),
    "finish reasons 30% to 60%": Change(finish=0.6),
}
LATENCY_ONLY = ("latency 1.2x", "latency 1.3x", "latency 2x", "latency 5x")


def upper_bound(hits: int, n: int, level: float = 0.95) -> float:
    """Clopper-Pearson upper confidence bound of a rate."""
    return 1.0 if hits >= n else float(beta.ppf(level, hits + 1, n - hits))


def block_means(track: TrackBlocks, metric: str) -> np.ndarray:
    """A latency's mean in each block, as peers would query it; NaN without samples."""
    sums = {"ttft": track.ttft, "itl": track.itl}[metric]
    with np.errstate(invalid="ignore", divide="ignore"):
        out: np.ndarray = sums.total / sums.count
    return out


def _rng(*key: object) -> np.random.Generator:
    digest = np.frombuffer(repr(key).encode().ljust(64, b"."), dtype=np.uint8)
    return np.random.default_rng([SEED, *digest.tolist()])


def _summary(times: np.ndarray) -> dict[str, float | None]:
    middle = float(np.median(times))
    return {
        "power": float(np.isfinite(times).mean()),
        "median": middle if math.isfinite(middle) else None,
    }


def false_rates(
    family: str, setting: Setting, traces: int, config: JudgeConfig
) -> dict[str, object]:
    """Family-wise false rollbacks and per-metric false passes, in batches of 2,000 traces."""
    out: dict[str, object] = {}
    for name, change in NULLS.items():
        failed, passed, done = 0, dict[str, int](), 0
        while done < traces:
            n = min(2000, traces - done)
            b, c = simulate(family, setting, n, change, _rng(family, name, done))
            found = judge_all(b, c, setting, config)
            failed += int(np.isfinite(np.min([f.worse for f in found.values()], axis=0)).sum())
            for metric, crossing in found.items():
                passed[metric] = passed.get(metric, 0) + int(np.isfinite(crossing.within).sum())
            done += n
        out[name] = {
            "failed": failed / traces,
            "failed_bound": upper_bound(failed, traces),
            "passed": {m: p / traces for m, p in passed.items() if m != "split"},
            "passed_bound": {m: upper_bound(p, traces) for m, p in passed.items() if m != "split"},
        }
    return out


def power(family: str, setting: Setting, traces: int, config: JudgeConfig) -> dict[str, object]:
    """Power within the trace and median delay (seconds) of the whole verdict, a regression."""
    out: dict[str, object] = {}
    for name, change in SHIFTS.items():
        if change.tail and family not in ("iid", "ar1"):
            continue
        b, c = simulate(family, setting, traces, change, _rng(family, name))
        found = judge_all(b, c, setting, config)
        out[name] = _summary(np.min([f.worse for f in found.values()], axis=0)) | {
            "ttft": _summary(found["ttft"].worse)
        }
    return out


def peers(
    families: tuple[str, ...], setting: Setting, traces: int, rate: float
) -> dict[str, object]:
    """Peers on mean TTFT or mean ITL, tuned in hindsight to each family and, as one setting, to
    all of them."""
    nulls, shifted = {}, {}
    for family in families:
        key = (family, "peers")
        nulls[family] = simulate(family, setting, traces, NULLS["at the margin"], _rng(*key))
        for name in LATENCY_ONLY:
            shifted[family, name] = simulate(
                family, setting, traces, SHIFTS[name], _rng(name, *key)
            )
    out: dict[str, object] = {}
    for metric in ("ttft", "itl"):
        means_of = {f: tuple(block_means(t, metric) for t in pair) for f, pair in nulls.items()}
        for peer, rule in PEERS.items():
            everywhere = tuned(rule, list(means_of.values()), rate)
            rows: dict[str, dict[str, object]] = {}
            for family in families:
                own = tuned(rule, [means_of[family]], rate)
                rows[family] = {"knob": own if math.isfinite(own) else None}
                for name in LATENCY_ONLY:
                    b, c = (block_means(t, metric) for t in shifted[family, name])
                    rows[family][name] = {
                        "own": _summary(delays(rule, own, b, c, setting.block)),
                        "everywhere": _summary(delays(rule, everywhere, b, c, setting.block)),
                    }
            out[f"{peer}, {metric.upper()}"] = {
                "everywhere": everywhere if math.isfinite(everywhere) else None,
                "families": rows,
            }
    return out


def sprt(setting: Setting, traces: int, config: JudgeConfig) -> dict[str, object]:
    """Mean seconds on independent requests: ours where replicas are declared not to drift, against
    Wald's test that knows the alternative, the noise and that samples are independent, with the
    same share of alpha and the same margin."""
    alpha = alpha_of("ttft", config)
    steady = config.model_copy(update={"drift_sd": 0.0})
    out: dict[str, object] = {}
    for shift in (1.2, 1.3, 1.5, 2.0):
        effect = math.log(shift / 1.1)
        pairs = 4.0 * TTFT_SIGMA**2 * -math.log(alpha) / effect**2
        seconds = min(max(5.0 * pairs / setting.rate, 60.0), 6000.0)
        block = 2.0 if seconds < 600 else 5.0
        long = Setting(setting.rate, math.ceil(seconds / block) * block, block)
        b, c = simulate("iid", long, traces, Change(latency=shift), _rng("sprt", shift))
        took = means(b.ttft, c.ttft, "ttft", steady, alpha, long).worse
        out[f"{shift}x"] = {
            "sprt": pairs / setting.rate,
            "ours": float(np.minimum(took, long.seconds).mean()),
            "power": float(np.isfinite(took).mean()),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=10_000, help="a family, for the headline")
    parser.add_argument("--power-traces", type=int, default=1_000)
    parser.add_argument("--peer-traces", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second and track")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--parts", nargs="+", default=["false", "power", "peers", "sprt"])
    parser.add_argument("--data", type=Path, default=Path("docs/calibration.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/calibration.md"))
    given = parser.parse_args()
    setting, config = Setting(given.rate, given.seconds), JudgeConfig()
    data = json.loads(given.data.read_text()) if given.data.exists() else {}
    data["setting"] = {
        "rate": setting.rate, "seconds": setting.seconds, "block": setting.block, "seed": SEED,
    }  # fmt: skip

    def keep(part: str, key: str | None, value: object, began: float) -> None:
        if key is None:
            data[part] = value
        else:
            data.setdefault(part, {})[key] = value
        given.data.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
        given.out.write_text(write_report(data))
        print(f"{part} {key or ''}: {time.monotonic() - began:.0f} s", flush=True)

    for family in given.families:
        if "false" in given.parts:
            began = time.monotonic()
            found = false_rates(family, setting, given.traces, config)
            keep("false", family, {"traces": given.traces, **found}, began)
        if "power" in given.parts:
            began = time.monotonic()
            found = power(family, setting, given.power_traces, config)
            keep("power", family, {"traces": given.power_traces, "shifts": found}, began)
    if "peers" in given.parts:
        began = time.monotonic()
        keep("peers", None, peers(FAMILIES, setting, given.peer_traces, config.alpha), began)
    if "sprt" in given.parts:
        began = time.monotonic()
        keep("sprt", None, sprt(setting, given.power_traces, config), began)


if __name__ == "__main__":
    main()
