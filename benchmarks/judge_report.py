"""The calibration page, from the numbers that `benchmarks.judge_calibration` measured."""

from __future__ import annotations

from typing import Any

_LATENCIES = ("latency 1.2x", "latency 1.3x", "latency 2x", "latency 5x")


_READING = [
    "How to read it. The tuned peers have been told what no user knows: the very family, the very",
    "noise, and the knob that gives 1% there; they use up the whole 1% on one number. Ours is told",
    "nothing and stays far below 1%: a bound that holds at every look, for eleven metrics and for",
    "drift that it has to find out about, is paid for in time. Where the data show soon that replicas",
    "are steady (`iid`, `mmpp`, `mgk`), the single setting finds a twofold latency sooner than any",
    "single setting of a peer. Where replicas really wander (`ar1`, `batch`) it is",
    "slower than a tuned count of failures, and for large regressions (5x) a count with a high limit",
    "is at once where ours takes half a minute to a minute and a half: the aim of twice the best peer's",
    "speed is not reached there. Regressions of 1.2 to 1.3 times on replicas that wander by 28% need",
    "longer steps, or replicas declared steadier, with anybody's rule.",
    "",
]


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


def _best(peers: dict[str, Any], family: str, shift: str, how: str) -> str:
    """The peer with the least median delay, then the most power."""
    found = {
        name: peer["families"][family][shift][how]
        for name, peer in peers.items()
        if family in peer["families"]
    }
    name = min(found, key=lambda n: (found[n]["median"] or float("inf"), -found[n]["power"]))
    return f"{_found(found[name])} ({name})"


def write_report(data: dict[str, Any]) -> str:
    """Markdown. Parts that were not measured are left out."""
    setting = data["setting"]
    lines = [
        "# Calibration of the judge",
        "",
        "Written by `make calibration` (`python -m benchmarks.judge_calibration`); the numbers are in",
        f"`calibration.json`. Seed {setting['seed']}, traces of {setting['seconds']:.0f} s, "
        f"{setting['rate']:g} requests a second on each track, 30 tokens each, blocks of "
        f"{setting['block']:g} s, a look at every block, default configuration (alpha 1%, latency "
        "margin 10%, drift 0.2 over 60 s) unless said otherwise.",
        "",
        "Families: `iid` independent requests; `ar1` each track's log latency wanders (sd 0.2, 30 to",
        "60 s); `mmpp` bursts (2.5 times for 10 s, 0.4 times for 25 s) into a queue of 8 servers at 50%",
        "load; `mgk` the same queue with Poisson arrivals at 70%; `batch` a server that slows down with",
        "the number of running requests. In the queueing families a regression scales the latencies and",
        "leaves the load alone.",
        "",
    ]
    if "false" in data:
        lines += [
            "## False rollbacks, false passes",
            "",
            "Share of traces (95% upper confidence bound) in which any metric failed, and in which a "
            "metric that is truly at its margin was passed (largest over the metrics).",
            "",
        ]
        rows = []
        for family, found in data["false"].items():
            null, edge = found["no difference"], found["at the margin"]
            worst = max(edge["passed"], key=lambda m: edge["passed"][m])
            rows.append(
                [
                    family,
                    f"{found['traces']:,}",
                    f"{null['failed']:.2%} ({null['failed_bound']:.2%})",
                    f"{edge['failed']:.2%} ({edge['failed_bound']:.2%})",
                    f"{edge['passed'][worst]:.2%} ({edge['passed_bound'][worst]:.2%}), {worst}",
                ]
            )
        lines += _table(
            ["family", "traces", "failed, no difference", "failed, at the margin",
             "passed, at the margin"], rows,
        )  # fmt: skip
    if "power" in data:
        families = list(data["power"])
        lines += [
            "## Regressions found",
            "",
            "Share of traces failed within the trace, and the median time to it.",
            "",
        ]
        shifts = list(next(iter(data["power"].values()))["shifts"])
        shifts += [s for f in families for s in data["power"][f]["shifts"] if s not in shifts]
        rows = [
            [
                shift,
                *(
                    _found(data["power"][f]["shifts"][shift])
                    if shift in data["power"][f]["shifts"]
                    else "–"
                    for f in families
                ),
            ]
            for shift in shifts
        ]
        lines += _table(["regression", *families], rows)
    if "peers" in data and "power" in data:
        lines += [
            "## Against other controllers' rules",
            "",
            "Latency regressions only. The peers' rules (Kayenta's Mann-Whitney judge, Flagger, Argo",
            "Rollouts) look at the mean TTFT or the mean ITL of each block, with their one knob tuned so that at most 1%",
            "of canaries at the margin are rolled back: as one setting that holds in every family (what a",
            "user who does not know the family has to choose), and in hindsight to each family. Ours is",
            "one setting for all, watches eleven metrics with the same 1%, and is shown whole and on TTFT",
            "alone (a seventh of alpha). Best peer of each cell.",
            "",
        ]
        rows = []
        for family in data["power"]:
            for shift in _LATENCIES:
                ours = data["power"][family]["shifts"][shift]
                rows.append(
                    [
                        family,
                        shift,
                        _found(ours),
                        _found(ours["ttft"]),
                        _best(data["peers"], family, shift, "everywhere"),
                        _best(data["peers"], family, shift, "own"),
                    ]
                )
        lines += _table(
            ["family", "regression", "ours", "ours, TTFT alone", "best peer, one setting",
             "best peer, tuned to the family"], rows,
        )  # fmt: skip
        lines += _READING
    if "sprt" in data:
        lines += [
            "## Against an SPRT that knows everything",
            "",
            "Independent requests, TTFT alone, replicas declared not to drift (`drift_sd: 0`), the same",
            "share of alpha and the same margin. Wald's test knows the noise, the size of the shift and",
            "the independence; ours knows none of them. Mean seconds to the decision.",
            "",
        ]
        rows = [
            [shift, f"{f['sprt']:.0f}", f"{f['ours']:.0f}", f"{f['ours'] / f['sprt']:.1f}",
             f"{f['power']:.0%}"]
            for shift, f in data["sprt"].items()
        ]  # fmt: skip
        lines += _table(["shift", "SPRT", "ours", "ratio", "decided in 5 times the SPRT's"], rows)
        lines += [
            "Short delays are rounded up to whole blocks and need three of them. With the default of",
            "`drift_sd: 0.2` no test can come near: two replicas that may stand 28% apart for a minute",
            "(0.2 each) look for that minute exactly like a regression of 28%. What remains of the drift",
            "after T seconds has variance 0.08 / (1 + T / 120 s): a twofold latency needs 180 s and more,",
            "however many requests there are, unless the data themselves show that there is no drift.",
            "",
        ]
    return "\n".join(lines)
