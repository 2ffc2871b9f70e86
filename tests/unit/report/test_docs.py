"""The documentation says what the code does: keys, defaults, examples, errors, links."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

from lockgate import errors
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import Phase
from lockgate.domain.sources import Source
from lockgate.domain.spec import ReleaseSpec
from lockgate.domain.tracks import Track
from tasks import events, notifying

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = (
    "index.md",
    "concepts.md",
    "spec.md",
    "scanning.md",
    "quantization.md",
    "operations.md",
    "real-cluster.md",
    "triggers.md",
)


def test_the_tables_of_keys_and_settings_are_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_spec_reference.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_the_examples_of_the_spec_page_are_valid_documents() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / "spec.md").read_text(), re.S)
    release, policy = (yaml.safe_load(example) for example in examples)
    assert str(Source.parse(ReleaseSpec.model_validate(release).source)) == release["source"]
    assert Policy.model_validate(policy).weights.license_required


def test_the_policy_of_the_scanning_page_is_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "scanning.md").read_text(), re.S)
    policy = Policy.model_validate(yaml.safe_load(example))
    assert policy.waivers[0].rule == "CVE-2026-1234"


def test_the_track_of_the_triggers_page_is_valid() -> None:
    example, _ = re.findall(r"```yaml\n(.*?)```", (DOCS / "triggers.md").read_text(), re.S)
    track = Track.model_validate(yaml.safe_load(example))
    assert track.frozen("production", datetime(2026, 12, 24, 12, tzinfo=UTC)) is not None


def test_the_automation_of_the_triggers_page_is_one_and_waits_for_an_event_that_is_sent() -> None:
    _, example = re.findall(r"```yaml\n(.*?)```", (DOCS / "triggers.md").read_text(), re.S)
    (automation,) = yaml.safe_load(example)["automations"]
    (expected,) = AutomationCore.model_validate(automation).trigger.expect
    assert expected in events.OF_TRANSITIONS.values()


def test_every_message_to_people_is_of_an_event_that_is_sent_and_is_listed_on_the_page() -> None:
    page = (DOCS / "triggers.md").read_text().partition("## Notifications")[2].partition("## Webhooks")[0]  # fmt: skip
    sent = {*events.OF_TRANSITIONS.values(), events.REFUSED, events.FAILED, events.FOUND, events.UNSCANNED}  # fmt: skip
    assert notifying.BY_EVENT.keys() <= sent
    listed = {cell for row in page.splitlines() if row.startswith("| `") for cell in re.findall(r"`(lockgate\.[a-z.]+)`", row)}  # fmt: skip
    assert listed == notifying.BY_EVENT.keys()


def test_every_event_is_explained_on_the_triggers_page() -> None:
    page = (DOCS / "triggers.md").read_text()
    sent = {*events.OF_TRANSITIONS.values()}
    sent |= {events.REFUSED, events.FAILED, events.FOUND, events.UNSCANNED, events.IN_FORCE}
    # `lockgate.release.deployed`, `.promoted`: what the first one begins with is not said again.
    assert [
        e for e in sent if f"`{e}`" not in page and f"`.{e.rpartition('.')[2]}`" not in page
    ] == []


def test_every_error_is_explained_on_the_operations_page() -> None:
    page = (DOCS / "operations.md").read_text()
    names = [
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.LockgateError) and kind is not errors.LockgateError
    ]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_phase_is_explained_on_the_concepts_page() -> None:
    page = (DOCS / "concepts.md").read_text()
    assert [phase for phase in Phase if f"| `{phase}` |" not in page] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_page_and_a_heading_that_exist(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS / name).read_text()):
        path, _, heading = target.partition("#")
        page = DOCS / path if path else DOCS / name
        assert page.is_file(), target
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
        assert not heading or heading in [h.lower().replace(" ", "-") for h in headings], target
