"""Messages about releases: their templates render, on Prefect's own terms, with what the events carry."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
import typer
from prefect.server.events.actions import SendNotification
from prefect.server.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.user_templates import (
    render_user_template_sync,
    validate_user_template,
)
from prefect.types._datetime import now

from lockgate.cli.app import app
from lockgate.domain.rollout import TransitionKind
from tasks import events
from tasks.notifying import MESSAGES, Message, automation

BLOCK = UUID(int=1)
RELEASE = {"release": "m-1", "candidate": "sha256:c", "reason": "too slow"}
RESCAN = {"role": "stable", "reasons": ["one", "two"], "candidate": "sha256:c"}
PAYLOADS: dict[str, dict[str, Any]] = {
    events.FAILED: {"error": "E", "message": "no disk", "log": "/l", "next_step": "more disk"},
    events.REFUSED: {"gate": "license", "reason": "too slow", "candidate": "sha256:c"},
    events.FOUND: RESCAN,
    events.UNSCANNED: RESCAN,
}


def said(message: Message) -> tuple[str, str]:
    event = ReceivedEvent.model_validate(
        {
            "occurred": now(), "id": UUID(int=2), "event": message.event,
            "resource": {
                "prefect.resource.id": "lockgate.model.m.prod",
                "prefect.resource.name": "m in prod", "lockgate.model": "m",
            },
            "payload": PAYLOADS.get(message.event, RELEASE),
        }
    )  # fmt: skip
    subject, body = (
        render_user_template_sync(text, {"event": event})
        for text in (message.subject, message.body)
    )
    return subject, body


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.event)
def test_every_message_is_an_automation_to_the_server_and_says_what_the_event_carries(
    message: Message,
) -> None:
    made = automation(message, BLOCK)
    # As the server reads it: it refuses templates that it thinks unsafe.
    read = AutomationCore.model_validate(made.model_dump(mode="json"))
    (action,) = read.actions
    assert isinstance(action, SendNotification) and action.block_document_id == BLOCK
    for text in (action.subject, action.body):
        validate_user_template(text)
    subject, body = said(message)
    assert subject.startswith("m in prod: ")
    assert "{{" not in subject + body
    shown = subject + body
    for key, value in PAYLOADS.get(message.event, RELEASE).items():
        assert ("; ".join(value) if isinstance(value, list) else value) in shown, key


def test_what_a_message_says_to_do_next_are_commands_that_there_are() -> None:
    there = {command.name for command in click_commands().values()}
    for message in MESSAGES:
        assert set(re.findall(r"`lockgate ([a-z]+)", message.body)) <= there, message.event


def click_commands() -> dict[str, Any]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined] # a group


def test_a_message_is_sent_whenever_a_release_waits_for_a_person_or_went_wrong() -> None:
    kinds = (TransitionKind.HOLD, TransitionKind.AWAIT, TransitionKind.ROLLBACK)
    wanted = {events.OF_TRANSITIONS[kind] for kind in kinds} | {events.FAILED, events.REFUSED}
    assert wanted <= {message.event for message in MESSAGES}
    assert len({message.automation for message in MESSAGES}) == len(MESSAGES)
