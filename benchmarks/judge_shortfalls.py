"""Where the judge is not as fast as it was meant to be, and why: a table of the calibration page, from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Summary = dict[str, Any]

TWICE, NEAR_SPRT = 2.0, 2.5
"""How much faster than the best peer, and how much slower than an SPRT, the judge was meant to be."""

_WANDER = "replicas may stand 28% apart for a minute: {sprt}"
_SECONDS = (
    "the wander lasts seconds, which has to be found out while longer ones are allowed for: {sprt}"
)
_FIRST = "a peer decides at its first look (5 s), the judge at its third block (3 to 6 s): there is no half of that to be had"
_BOUND = "a slow request is not beyond the tail's bound, which lies above the waits that are usual in the queue"
_NO_TEST = "the tail of the token times has no test of its own"
_RARE = "more requests are needed than 300 s have: an SPRT needs 756 s with all of alpha, 1,122 s with the metric's share"
_SHARED = "the peer spends all of the 1% on this one thing, the judge a ninth: an SPRT needs 12 s with all, 18 s with the share"
_LENGTHS = "the peer spends all of the 1% on this one thing, the judge a fourteenth, on both directions: an SPRT that knows the scatter needs 19 s with all, 30 s with the share"
_MIX = (
    "the peer spends all of the 1% on this one thing, the judge a 28th, on three reasons in both directions: an SPRT needs 36 s "
    "with all, 61 s with the share"
)
_REASONS = {
    "latency 5x": _FIRST,
    "TTFT tail (5% at 10x)": _BOUND,
    "ITL tail (5% at 10x)": _NO_TEST,
    "errors 1% to 3%": _RARE,
    "errors 1% to 30%": _SHARED,
    "answers cut to 60%": _LENGTHS,
    "finish reasons 30% to 60%": _MIX,
}


def faster(ours: Summary, other: Summary) -> float | None:
    """How much faster ours is, by medians; None where it does not find half."""
    if ours["median"] is None:
        return None
    return float("inf") if other["median"] is None else float(other["median"] / ours["median"])


def shortfalls(
    data: dict[str, Any],
    best: Callable[[dict[str, Any], str, str, str], tuple[str, Summary]],
    words: Callable[[Summary], str],
    table: Callable[[list[str], list[list[str]]], list[str]],
) -> list[str]:
    """Markdown. `best`: the best peer of a family and regression; `words`: a summary in words."""
    rows, reached, cells = [], dict.fromkeys(("everywhere", "same", "own"), 0), 0
    for family, shifts in data["power"].items():
        for shift, ours in shifts.items():
            cells += 1
            for how in reached:
                speed = faster(ours, best(data["peers"], family, shift, how)[1])
                reached[how] += speed is not None and speed >= TWICE
            name, other = best(data["peers"], family, shift, "everywhere")
            speed = faster(ours, other)
            if speed is None or speed < TWICE:
                how_much = "not found in half" if speed is None else f"{speed:.1f}"
                why = _why(data, family, shift, words)
                rows.append([shift, family, words(ours), f"{words(other)} ({name})", how_much, why])
    lines = [
        "## Where it is not reached, and why",
        "",
        "The judge was meant to be at least twice as fast as the best peer at the same rate of false rollbacks, and within 2.5 times",
        f"an SPRT on independent data. Of {cells} pairs of family and regression it is twice as fast in {reached['everywhere']} where the peers",
        f"have one setting at 1%, in {reached['same']} where that is as rarely wrong as ours, and in {reached['own']} where each is tuned in",
        "hindsight to the family (which no user can do). Each pair where it is not, peers with one setting at 1%:",
        "",
        *table(["regression", "family", "ours", "best peer", "faster", "why not twice"], sorted(rows)),
    ]  # fmt: skip
    if "steady" in data:
        lines += _slow_against_sprt(data["steady"], table)
    return lines


def _why(data: dict[str, Any], family: str, shift: str, words: Callable[[Summary], str]) -> str:
    reason = _REASONS.get(shift)
    if reason is not None:
        return reason
    found: dict[str, Summary] = data.get("oracle", {}).get(family, {}).get(shift, {})
    shares = [found[f"{metric} share"] for metric in ("ttft", "itl") if f"{metric} share" in found]
    known = min(shares, key=lambda s: (s["median"] or float("inf"), -s["power"]), default=None)
    told = (
        "" if known is None else f"an SPRT told everything, with the metric's share: {words(known)}"
    )
    return (_SECONDS if family == "batch" else _WANDER).format(sprt=told)


def _slow_against_sprt(
    steady: dict[str, Any], table: Callable[[list[str], list[list[str]]], list[str]]
) -> list[str]:
    rows: list[Sequence[str]] = []
    for name, found in steady.items():
        if name == "traces":
            continue
        ratio = found["ours"]["mean"] / found["sprt"]
        if ratio > NEAR_SPRT:
            why = (
                "tokens of a batch are taken to hang together 25-fold until it is seen that they do not, and nothing is said before "
                "the third block (3 s); the SPRT is told that they are independent"
                if name.startswith("itl")
                else "nothing is said before the third block (3 s) has two requests on each track, and the scatter has to be measured"
            )
            rows.append(
                [
                    name,
                    f"{found['sprt']:.2f} s",
                    f"{found['ours']['mean']:.1f} s",
                    f"{ratio:.1f}",
                    why,
                ]
            )
    return [
        "And each metric and size for which the SPRT on independent data is more than 2.5 times as fast (all of them in the next section):",
        "",
        *table(["metric, shift", "SPRT", "ours", "ratio", "why"], [list(row) for row in rows]),
    ]
