"""Which scanner catches what: every malicious model of the tests under every weight scanner, as a table by class.

`python -m benchmarks.scan_corpus [--write docs/scanning.md]`. Structural checks look at each model by itself; scanners that
are processes look at all of them in one call, as at one directory. Takes some minutes: modelaudit renders and unpacks.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from lockgate.adapters.scanners import ENGINES, engine_versions, scan_weights
from lockgate.adapters.scanners.engine import ScanJob
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.evidence import Finding, ScanEvidence, Severity
from lockgate.domain.gates import Decision
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import Policy, WeightScanPolicy
from lockgate.domain.sources import Snapshot
from tests.unit.scanners.corpus import MALICIOUS
from tests.unit.scanners.models import benign
from tests.unit.scanners.sound_models import BENIGN

BEGIN, END = "<!-- corpus: generated -->", "<!-- corpus: end -->"
PROCESSES = ("picklescan", "modelaudit")
OWN = WeightScanPolicy(scanners=("structure",))
POLICY = WeightScanPolicy()


def build(place: Path) -> tuple[Path, Path]:
    """The directories of malicious and benign models; names are those of the cases, as folders."""
    bad, good = place / "malicious", place / "benign"
    for name, case in MALICIOUS.items():
        case.build(benign(bad / folder(name), template=""), place / "canary")
    for name, make in BENIGN.items():
        (good / folder(name)).mkdir(parents=True)
        make(good / folder(name))
    return bad, good


def folder(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def scanned_together(models: Path, leave_out: set[str], place: Path) -> dict[str, list[Finding]]:
    """Findings of the scanners that are processes, by folder."""
    found: dict[str, list[Finding]] = defaultdict(list)
    snapshot = read_snapshot(models, strict=False)
    kept = [f for f in snapshot.files if f.path.split("/")[0] not in leave_out]
    for engine in PROCESSES:
        look = ENGINES[engine].scan(ScanJob(models, Snapshot.of(kept), POLICY, place))
        if look.failure:
            # That refuses such a model too; what it found in the others still counts.
            sys.stderr.write(f"{engine}: {look.failure}\n")
        for finding in look.findings:
            found[finding.path.split("/")[0]].append(finding)
    return found


def scanned_alone(directory: Path, place: Path, more: list[Finding]) -> ScanEvidence:
    snapshot = read_snapshot(directory, strict=False)
    evidence = scan_weights(directory, snapshot, OWN, log_directory=place)
    findings = (*evidence.findings, *more)
    return evidence.model_copy(update={"findings": findings})


def blocked(evidence: ScanEvidence) -> bool:
    now = datetime.now(UTC)
    gate = scan_gate([evidence], Policy(weights=OWN), now=now, required_kinds=("weights",))
    return gate.decision is Decision.FAIL


def lines(place: Path) -> list[str]:
    bad, good = build(place)
    slow = {folder(name) for name, case in MALICIOUS.items() if case.slow}
    together = scanned_together(bad, slow, place / "logs")
    kinds: dict[str, list[tuple[str, set[str], bool]]] = defaultdict(list)
    for name, case in MALICIOUS.items():
        own = folder(name)
        evidence = scanned_alone(bad / own, place / "logs", together[own])
        caught = {f.scanner for f in evidence.findings if f.severity is not Severity.LOW}
        kinds[case.kind].append((name, caught, blocked(evidence)))
    names = tuple(ENGINES)
    versions = engine_versions(POLICY)
    out = [
        f"{len(MALICIOUS)} malicious models of {len(kinds)} classes; {', '.join(f'{n} {versions[n]}' for n in names)}. "
        "Cells: models of the class in which the scanner finds something of severity medium or above.",
        "",
        f"| class | models | {' | '.join(names)} | blocked |",
        f"|---|---|{'---|' * len(names)}---|",
    ]
    for kind, rows in kinds.items():
        cells = [str(sum(name in caught for _, caught, _ in rows)) for name in names]
        stopped = sum(stop for _, _, stop in rows)
        out.append(f"| {kind} | {len(rows)} | {' | '.join(cells)} | {stopped} |")
    rows = [row for found in kinds.values() for row in found]
    cells = [str(sum(name in caught for _, caught, _ in rows)) for name in names]
    out.append(
        f"| **all** | {len(rows)} | {' | '.join(cells)} | {sum(stop for _, _, stop in rows)} |"
    )
    sound = scanned_together(good, set(), place / "logs")
    wrong = [
        name
        for name in BENIGN
        if blocked(scanned_alone(good / folder(name), place / "logs", sound[folder(name)]))
    ]
    canary = "exists" if (place / "canary").exists() else "does not exist"
    out += [
        "",
        f"{len(slow)} of them are shown to `structure` alone, the others take minutes over each. Of {len(BENIGN)} benign models "
        f"{len(wrong)} are blocked{': ' + ', '.join(wrong) if wrong else ''}. The canary that payloads would touch {canary}.",
    ]
    if not all(stop for _, _, stop in rows) or wrong or (place / "canary").exists():
        out.append("FAILED: " + ", ".join(name for name, _, stop in rows if not stop))
    return out


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--write", type=Path, help="page to write the table into")
    page = arguments.parse_args().write
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "logs").mkdir()
        made = lines(Path(scratch))
    sys.stdout.write("\n".join(made) + "\n")
    if page is not None:
        before, rest = page.read_text().split(BEGIN)
        after = rest.split(END)[1]
        page.write_text(f"{before}{BEGIN}\n\n{chr(10).join(made)}\n\n{END}{after}")
    return 1 if made[-1].startswith("FAILED") else 0


if __name__ == "__main__":
    sys.exit(main())
