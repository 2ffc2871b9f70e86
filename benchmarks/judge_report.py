"""The calibration page from the calibration's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.judge_shortfalls import shortfalls

_LATENCIES = ("latency 1.2x", "latency 1.3x", "latency 2x", "latency 5x")
_OTHERS = (
    "TTFT tail (5% at 10x)",
    "ITL tail (5% at 10x)",
    "errors 1% to 3%",
    "errors 1% to 30%",
    "answers cut to 60%",
    "finish reasons 30% to 60%",
)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _found(summary: dict[str, Any]) -> str:
    median = summary["median"]
    return f"{summary['power']:.0%}, " + (
        f"{median:.0f} s" if median is not None else "not in half"
    )


def _best(peers: dict[str, Any], family: str, shift: str, how: str) -> tuple[str, dict[str, Any]]:
    """The peer with the least median delay, then the most power."""
    found = {
        name: peer["families"][family][shift][how]
        for name, peer in peers.items()
        if isinstance(peer, dict) and shift in peer["families"][family]
    }
    name = min(found, key=lambda n: (found[n]["median"] or float("inf"), -found[n]["power"]))
    return name, found[name]


def _percent(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:.2%}"


def _speed(ours: dict[str, Any], other: dict[str, Any]) -> str:
    """How much faster ours is, by medians."""
    if ours["median"] is None:
        return "neither" if other["median"] is None else "slower"
    return "only ours" if other["median"] is None else f"{other['median'] / ours['median']:.1f}"


def _rate(hits: int, n: int, bound: Callable[[int, int], float]) -> str:
    return f"{hits / n:.2%} ({bound(hits, n):.2%})"


def _false(found: dict[str, Any], bound: Callable[[int, int], float]) -> list[list[str]]:
    rows = []
    for family, nulls in found.items():
        row = [family]
        for null in ("no difference", "tail at the margin", "at the margin"):
            counts = nulls.get(null)
            row += [f"{counts['traces']:,}", _rate(counts["failed"], counts["traces"], bound)] if (
                counts
            ) else ["0", "–"]  # fmt: skip
        passed = [
            (counts[metric] / counts["traces"], counts[metric], counts["traces"], metric)
            for null, counts in nulls.items()
            for metric in counts
            if metric.startswith("passed ")
            and (metric == "passed ttft_tail") == (null == "tail at the margin")
            and not (metric == "passed ttft_tail" and family in _QUEUES)
            and metric not in _NOT_THERE
        ]
        if passed:
            _, hits, traces, metric = max(passed)
            row.append(f"{_rate(hits, traces, bound)}, `{metric.removeprefix('passed ')}`")
        else:
            row.append("–")
        rows.append(row)
    return rows


_GUARANTEES = [
    "Which part rests on what. The evidence on latencies and lengths is an e-process under the model of",
    "`judge.md` (shift, Ornstein-Uhlenbeck drift, noise of unknown dispersion), averaged over its nuisances:",
    "alpha holds for it by Ville's inequality, at every look. At a single nuisance, in a queue, and with the",
    "scatter estimated from the data it holds by this simulation only. The evidence on shares (errors, reasons,",
    "slow requests) is an e-process for independent trials whose shares may vary in time; dividing it by a",
    "measured dispersion is checked by simulation only. The sum over the metrics adds no assumption. The",
    "nuisances' weights, the fraction of a nat that is taken off, the bound of slow requests and what of them",
    "counts a block were chosen on other traces of the same families.",
    "",
]

_READING = [
    "How to read it. **Latencies.** With one setting for all, the judge is more than twice as fast as any peer's rule",
    "where the data show soon that replicas are steady (`iid`, `mgk`, `mmpp`: 1.2x to 2x; the peers do not find 1.2x and",
    "1.3x at all). Not so for twofold latency in `ar1` and `batch`: replicas that may stand 28% apart for a minute take",
    "time to be told from a regression. An SPRT that is told everything needs 68 s in `ar1` with all of alpha, and 116 s",
    "with the share that one of thirteen metrics has (next table). In `batch` the wander lasts seconds only, which the SPRT",
    "is told and the judge has to find out while it must allow for longer. Kayenta's test of ITL alone, with all of the",
    "1%, is two to three times as fast there, and misses a third of the regressions. Fivefold latency: a peer needs one",
    "look (5 s), ours three blocks (3 to 6 s). A peer tuned in hindsight to a family of steady replicas knows that they",
    "are steady and decides at its first look; no rule that has to hold in `ar1` can.",
    "",
    "**Errors, lengths, reasons.** A peer's rule watches one thing and spends all of the 1% on it; ours shares it among",
    "thirteen. Gross errors and cut answers are found about as fast by both; changed reasons twice as fast by Kayenta's test",
    "where it finds them (63% to 94%), a fifth faster by ours at the same rate of false rollbacks. Errors of 3% instead of",
    "1% are found in 300 s by nobody; in 1,800 s by ours in 66% to 73%, by the best peer in a fifth (in `mmpp` in 78%).",
    "The peers' fixed limit for errors is tuned in a world whose baseline is always 1%: it knows what ours has to measure.",
    "",
    "**Tails.** 5% of requests at ten times their time to first token: found by ours alone in `iid`, `ar1` and `batch`; in",
    "the queues `mgk` and `mmpp` what is slow is not beyond the judge's bound, and a rule on the 95th percentile finds it in",
    "`mmpp`. The tail of the token times has no test of its own: it is found in `iid` only, where it shows in the mean.",
    "",
]

_BEYOND = [
    "The guarantee is for the average of the wanders that are thought of; at a single size it may be missed. With one null for both",
    "sides and a quarter of a nat taken off, `ttft` passed 7.3% of 6,500 such traces of `batch` at the margin, whose replicas wander by",
    "more than is declared, and for seconds (the log ratio by 0.39 over 12 s instead of 0.28 over 60 s), and `itl` some 20% of `calm`.",
    "So the null of a pass has weights of its own, for calmer replicas and for shorter wanders, and one and a half nats are taken off. Of 500",
    "traces each at the margin, with one nat, `itl` and `ttft` passed 1.4% and 2.2% where replicas wander by 0.05, 2.6% and 2.0% at 0.03.",
    "",
    "Requests at 20x bring the mean of the time to first token to its own margin, too (+9.7%). The log of a block's mean is put right by",
    "half the variance that the samples scatter, which is too much where a few very slow requests make the scatter: in `iid` +9.7% looks",
    "like +11.6%, and 3.0% of such traces were failed. So a difference of latencies counts against the canary only as far as it is",
    "there, too, when both tracks are put right by the scatter of all.",
    "",
]

_QUEUES = ("mgk", "mmpp")
"""Where what is usual lies so high that a request of twentyfold latency is not beyond the tail's bound."""

_NOT_THERE = ("passed split", "passed e2e_per_token")
"""The split has no margin; seconds a token are not at theirs where the answers are longer too."""

_FALSE_HEAD = ["family", "traces, no difference", "failed", "traces, 0.51% of requests at 20x", "failed",
               "traces, at the margin", "failed", "passed (worst metric)"]  # fmt: skip


def write_report(data: dict[str, Any], bound: Callable[[int, int], float]) -> str:
    """Markdown. Parts that were not measured are left out. `bound`: upper confidence bound of hits
    among trials."""
    setting = data["setting"]
    lines = [
        "# Calibration of the judge",
        "",
        "Written by `make calibration` (`python -m benchmarks.judge_calibration`), which may be stopped",
        "and goes on where it was; the numbers are in `calibration.json`. "
        f"Seed {setting['seed']}, traces of {setting['seconds']:.0f} s,",
        f"{setting['rate']:g} requests a second on each track, 30 tokens each, a scrape every "
        f"{setting['scrape']:g} s and a look at every",
        f"scrape, blocks of at most {setting['block']:g} s, default configuration (alpha 1%, latency "
        "margin 10%, drift 0.2 over",
        f"60 s) unless said otherwise. What is here took {data.get('cpu_seconds', 0) / 60:.0f} CPU "
        "minutes.",
        "",
        "Families: `iid` independent requests; `ar1` each track's log latency wanders (sd 0.2, 30 to",
        "60 s), `calm` by half of that; `mmpp` bursts (2.5 times for 10 s, 0.4 times for 25 s) into a queue of 8 servers at 50%",
        "load; `mgk` the same queue with Poisson arrivals at 70%; `batch` a server that slows down with",
        "the number of running requests. In the queueing families a regression scales the latencies and",
        "leaves the load alone. All thirteen metrics with data take their share of alpha; eight are",
        "simulated. The load is taken to be known to be alike, as a committed weight tells (`judge.md` has what it costs",
        "where none does).",
        "",
    ]
    if "false" in data:
        lines += [
            "## False rollbacks, false passes",
            "",
            "Share of traces (95% upper confidence bound) in which the canary was failed, and in which a "
            "metric that is truly at its margin was passed (the worst of the metrics; `e2e_per_token` is "
            "not at its margin there, since longer answers spread the first token over more of them). Of "
            "requests that take twenty times as long, 0.51% bring the tail of the time to first token to its "
            "margin: 0.48% to 0.51% of all are then beyond its bound. (At ten times 0.31% to 0.38% would be: such a "
            "canary is within its margin. It was passed in 6.45% of 4,000 traces of 1,800 s of `ar1`. In `mgk` and `mmpp` few "
            "are beyond the bound at either, since it lies above the waits that are usual there: no pass of the tail is "
            "counted as false in these.)",
            "",
            *_table(_FALSE_HEAD, _false(data["false"], bound)),
            *_GUARANTEES,
        ]
    if "long" in data:
        lines += [
            f"The same on traces of {setting['long']:.0f} s, the default time budget, looked at just as "
            "often:",
            "",
            *_table(_FALSE_HEAD, _false(data["long"], bound)),
            *_BEYOND,
        ]
    if "passing" in data:
        lines += _passing(data)
    if "power" in data:
        families = list(data["power"])
        lines += [
            "## Regressions found",
            "",
            "Share of traces failed within the trace, and the median time to it.",
            "",
        ]
        shifts = list(
            dict.fromkeys(s for f in ("iid", *families) for s in data["power"].get(f, {}))
        )
        rows = [
            [
                shift,
                *(
                    _found(data["power"][f][shift]) if shift in data["power"][f] else "–"
                    for f in families
                ),
            ]
            for shift in sorted(shifts)
        ]
        lines += _table(["regression", *families], rows)
    if "lasting" in data:
        lines += _lasting(data)
    if "peers" in data and "power" in data:
        lines += _against_peers(data)
    if "oracle" in data and "power" in data:
        lines += _against_oracle(data)
    if "peers" in data and "power" in data:
        lines += shortfalls(data, _best, _found, _table)
    if "steady" in data:
        lines += _steady(data["steady"])
    if "bands" in data:
        lines += _bands(data, bound)
    return "\n".join(lines)


def _bands(data: dict[str, Any], bound: Callable[[int, int], float]) -> list[str]:
    """Whether the displayed bands hold the truth."""
    seconds = {"short": data["setting"]["seconds"], "long": data["setting"]["long"]}
    rows = [
        [
            f"{seconds[name]:.0f} s", family, f"{found['traces']:,}",
            *(_rate(found[what], found["traces"], bound) for what in ("ratio", "own")),
            *(f"{found[q]:.1f}" if q in found else "open" for q in ("p50", "p95")),
        ]
        for family, lengths in data["bands"].items()
        for name, found in lengths.items()
    ]  # fmt: skip
    return [
        "## Bands of quantiles",
        "",
        "The bands that a report shows of the median and the 95th percentile of the time to first token, on two tracks that",
        "are alike: share of traces (95% upper confidence bound) in which any band, at any look, misses. At the level of 95%",
        "at most 5% may, of all of a metric's bands together. `reach`: the upper end of the ratio's band at the end, in the",
        "middle of the traces; the bounds of the buckets alone (0.1, 0.25, 0.5, 0.75 s) make 2.5 of it.",
        "",
        *_table(["traces of", "family", "traces", "ratio missed", "a track's own missed", "reach, p50", "reach, p95"],
                sorted(rows, key=lambda row: (row[0], row[1]))),
        "The ratios hold in every family. A track's own quantiles hold where replicas wander as declared. In a queue with bursts",
        "(`mmpp`, `mgk`) they are those of what was served so far: after a quiet minute nobody knows how long the waits are of",
        "which the long run is made, and the declared drift does not tell.",
        "",
    ]  # fmt: skip


def _passing(data: dict[str, Any]) -> list[str]:
    """How soon a good canary is passed."""
    families = list(data["passing"])
    metrics = [m for m in data["passing"][families[0]] if m != "traces"]
    rows = [
        ["**together**" if metric == "all" else f"`{metric}`"]
        + [_found(data["passing"][family][metric]) for family in families]
        for metric in metrics
    ]
    traces = data["passing"][families[0]]["traces"]
    return [
        "## Passes",
        "",
        f"Of canaries that are no different ({traces:,} traces of {data['setting']['long']:.0f} s a family): share in which each required metric is",
        "shown to be within its margin, and the median time to it. Even a test that knows the shares needs 4,900 requests a track to",
        "show on average that 1% of errors are within half a point of each other (1,400 at 0.2%, 600 where nothing fails), and 1,000 for",
        "30% and five points: such a trace has 3,600. Replicas that wander by 0.2 for a minute are within 10% of each other only on",
        "average over many minutes.",
        "",
        *_table(["metric", *families], rows),
    ]


def _lasting(data: dict[str, Any]) -> list[str]:
    """Regressions looked for until the default time budget is used up."""
    found, others = data["lasting"], data.get("peers lasting")
    lines = [
        f"The same on traces of {data['setting']['long']:.0f} s, beside the best of the other controllers' "
        "rules (below) with",
        "one setting for all families, tuned to at most 1% of canaries at the margin within that time:",
        "",
    ]
    head = ["regression", "family", "traces", "ours", "best peer, one setting at 1%"]
    rows = []
    for family, shifts in found.items():
        for shift, ours in shifts.items():
            other = "–"
            if others:
                name, best = _best(others, family, shift, "everywhere")
                other = f"{_found(best)} ({name})"
            rows.append([shift, family, f"{ours['traces']:,}", _found(ours), other])
    return lines + _table(head, sorted(rows))


def _against_peers(data: dict[str, Any]) -> list[str]:
    lines = [
        "## Against other controllers' rules",
        "",
        "The peers' rules (Kayenta's Mann-Whitney judge, Flagger, Argo Rollouts) look every 5 s at what",
        "happened since their last look: the mean TTFT, the mean ITL or the 95th percentile of TTFT (as",
        "`histogram_quantile` has it); of the other regressions the share of errors, the mean length or the",
        "share that ended by length, and nothing else. Flagger and Argo Rollouts hold errors and reasons",
        "against a fixed limit, everything else against the baseline. Their one knob (limit or ratio) is",
        "tuned so that at most 1% of canaries at the margin are rolled back within the 300 s "
        f"({data['peers']['traces']:,}",
        "traces a family): as one setting that holds in every family (what a user who does not know the",
        "family has to choose), and in hindsight to each family. Ours is one setting for all, and its 1%",
        "is for thirteen metrics. Ours was measured to be wrong less often than 1%; so the peers are also",
        f"shown with one setting that is as rarely wrong as ours ({_percent(data['peers']['measured'])}). "
        "Best peer of each",
        "cell; `faster`: its median delay over ours.",
        "",
    ]
    rows = []
    for family in data["power"]:
        for shift in (*_LATENCIES, *_OTHERS):
            ours = data["power"][family].get(shift)
            if ours is None:
                continue
            one_name, one = _best(data["peers"], family, shift, "everywhere")
            same_name, same = _best(data["peers"], family, shift, "same")
            own_name, own = _best(data["peers"], family, shift, "own")
            rows.append(
                [
                    family, shift, _found(ours),
                    f"{_found(one)} ({one_name})", _speed(ours, one),
                    f"{_found(same)} ({same_name})", _speed(ours, same),
                    f"{_found(own)} ({own_name})", _speed(ours, own),
                ]
            )  # fmt: skip
    return lines + _table(
        ["family", "regression", "ours", "best peer, one setting at 1%", "faster",
         "one setting as rarely wrong as ours", "faster",
         "tuned to the family at 1%", "faster"], rows,
    ) + _READING  # fmt: skip


def _against_oracle(data: dict[str, Any]) -> list[str]:
    lines = [
        "## What is reachable",
        "",
        "An SPRT that is told the size of the regression and the family's noise and drift, and looks at",
        "one metric only (the better of TTFT and ITL), against the same margin: with the whole 1%, and",
        "with that metric's share of it. Ours is told nothing.",
        "",
    ]
    rows = []
    for family, found in data["oracle"].items():
        for shift in _LATENCIES:
            ours = data["power"].get(family, {}).get(shift)
            if ours is None or shift not in found:
                continue
            best = {
                how: min(
                    (found[shift][f"{m} {how}"] for m in ("ttft", "itl")),
                    key=lambda x: (x["median"] or float("inf"), -x["power"]),
                )
                for how in ("all", "share")
            }
            rows.append([family, shift, _found(best["all"]), _found(best["share"]), _found(ours)])
    lines += _table(["family", "regression", "SPRT, all of alpha", "SPRT, its share", "ours"], rows)
    if "counts" in data:
        lines += [
            "Shares of independent requests, mean seconds of an SPRT that knows both shares:",
            "",
        ]
        rows = [[name, f"{seconds:.0f} s"] for name, seconds in data["counts"].items()]
        lines += _table(["regression", "SPRT"], rows)
    return lines


def _steady(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Against an SPRT on independent data",
        "",
        "Independent requests, replicas declared not to drift (`drift_sd: 0`), one metric alone with its",
        "share of alpha, the same margin. Wald's test knows the scatter, the size of the shift and the",
        "independence (30 tokens of a request are 30 independent samples to it); its mean seconds are",
        "`ln(1/alpha)` over the information a second. Ours knows none of that. It cannot decide before its",
        "third block (3 s), and grants tokens a dispersion of 25 until it has seen otherwise, which is where",
        "the rest of ITL's time goes.",
        "",
    ]
    rows = [
        [name, f"{f['sprt']:.1f}", f"{f['ours']['mean']:.1f}",
         f"{f['ours']['mean'] / f['sprt']:.1f}", f"{f['ours']['power']:.0%} in {f['seconds']:.0f} s"]
        for name, f in found.items() if name != "traces"
    ]  # fmt: skip
    return lines + _table(["metric, shift", "SPRT", "ours", "ratio", "found by ours"], rows)
