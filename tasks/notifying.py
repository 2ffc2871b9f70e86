"""Messages to people about releases: Prefect's own automations, one for each event that somebody has to hear of.

Lockgate writes their definitions, and the block that holds the address; the server that they are made on sends the messages,
through apprise, whether or not anything of Lockgate runs.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import httpx
from prefect.blocks.abstract import NotificationError
from prefect.blocks.notifications import SlackWebhook
from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, PrefectException
from pydantic import SecretStr

from lockgate.domain.base import Frozen
from lockgate.domain.rollout import TransitionKind
from lockgate.errors import LockgateError, UsageError
from tasks import events

BLOCK = "lockgate-notifications"
PREFIX = "lockgate: "
WHERE = "{{ event.resource['prefect.resource.name'] }}"


class Message(Frozen):
    """What is said of one event. Both texts are Prefect's templates, of the event and its payload."""

    event: str
    subject: str
    body: str

    @property
    def automation(self) -> str:
        return f"{PREFIX}{self.event}"


def _message(event: str, subject: str, *lines: str) -> Message:
    return Message(event=event, subject=f"{WHERE}: {subject}", body="\n".join(lines))


_RELEASE = "Release {{ event.payload.release }}, candidate {{ event.payload.candidate }}"
_REASON = "{{ event.payload.reason }}"
_MODEL = "{{ event.resource['lockgate.model'] }}"
MESSAGES = (
    _message(
        events.OF_TRANSITIONS[TransitionKind.HOLD], "held", _REASON, _RELEASE,
        f"Next: `lockgate explain {_MODEL}`, then `lockgate promote --resume` or `lockgate rollback`",
    ),
    _message(
        events.OF_TRANSITIONS[TransitionKind.ROLLBACK], "rolled back", _REASON, _RELEASE,
        f"Next: `lockgate explain {_MODEL}`",
    ),
    _message(
        events.OF_TRANSITIONS[TransitionKind.ABORT], "ended without a verdict", _REASON, _RELEASE,
        f"Next: `lockgate explain {_MODEL}`",
    ),
    _message(
        events.OF_TRANSITIONS[TransitionKind.AWAIT], "waits for an approval", _REASON, _RELEASE,
        f"Next: `lockgate approve {_MODEL}` shows what waits, and asks; or `lockgate reject`",
    ),
    _message(
        events.FAILED, "could not be carried out",
        "{{ event.payload.error }}: {{ event.payload.message }}", "Log: {{ event.payload.log }}",
        "Next: {{ event.payload.next_step }}",
    ),
    _message(
        events.REFUSED, "refused by gate {{ event.payload.gate }}", _REASON,
        "Candidate {{ event.payload.candidate }}", f"Next: `lockgate explain {_MODEL}`",
    ),
    _message(
        events.FOUND, "a re-scan found something in the {{ event.payload.role }} version",
        "{{ event.payload.reasons | join('; ') }}", "Candidate {{ event.payload.candidate }}",
    ),
    _message(
        events.UNSCANNED, "a re-scan of the {{ event.payload.role }} version is incomplete",
        "{{ event.payload.reasons | join('; ') }}", "Candidate {{ event.payload.candidate }}",
    ),
)  # fmt: skip
BY_EVENT = {message.event: message for message in MESSAGES}


def automation(message: Message, block: UUID) -> AutomationCore:
    """The automation that sends a message for its event, at once and each time."""
    return AutomationCore(
        name=message.automation,
        description="Made by `lockgate notifications set`",
        trigger=EventTrigger(
            expect={message.event}, match={"prefect.resource.id": "lockgate.model.*"},
            posture=Posture.Reactive, threshold=1, within=timedelta(0),
        ),
        actions=[
            SendNotification(block_document_id=block, subject=message.subject, body=message.body)
        ],
    )  # fmt: skip


def set_up(url: SecretStr, chosen: tuple[str, ...] = (), *, try_it: bool = True) -> list[str]:
    """Make or change block and automations on the server. `chosen`: events; all that there is a message for, if empty. Those
    that are not chosen are removed. `try_it`: after a first message from here. Returns the names of the automations now.

    Raises:
        UsageError: there is no message for an event.
        LockgateError: the first message could not be sent, or the server refused.
    """
    unknown = sorted(set(chosen) - BY_EVENT.keys())
    if unknown:
        raise UsageError(
            f"no message is sent for {', '.join(unknown)}", hint=f"events: {', '.join(BY_EVENT)}"
        )
    # Prefect's interface to apprise cannot be saved itself. This block of it takes any address: it hands all but Slack's own on as they are.
    block = SlackWebhook(url=url)
    if try_it:
        _send_first(block)
    wanted = [message for message in MESSAGES if not chosen or message.event in chosen]
    try:
        saved = block.save(BLOCK, overwrite=True)
        assert isinstance(saved, UUID)
        _put([automation(message, saved) for message in wanted])
    except (PrefectException, httpx.HTTPError) as error:
        # What the server says of a request that it refused has the request, with the address, in it.
        said = type(error).__name__
        raise LockgateError(f"Prefect refused the notifications ({said})") from None
    return [message.automation for message in wanted]


def _send_first(block: SlackWebhook) -> None:
    try:
        with block.raise_on_failure():
            block.notify(subject="Lockgate", body="Messages about releases come here.")
    except NotificationError as error:
        # The address may hold a password, and apprise's log the address: neither is said again.
        raise LockgateError(
            "no message could be sent to the address",
            hint="is it one that apprise knows (https://appriseit.com/services) and that is reached from here? "
            "`--no-try` leaves the first message out",
        ) from error


def remove() -> list[str]:
    """Remove every automation that `set_up` made, and the address. Returns their names."""
    with get_client(sync_client=True) as client:
        gone = _made()
        for one in gone:
            client.delete_automation(one.id)
        try:
            document = client.read_block_document_by_name(BLOCK, SlackWebhook.get_block_type_slug())
        except ObjectNotFound:
            return [one.name for one in gone]
        client.delete_block_document(document.id)
    return [one.name for one in gone]


def _made() -> list[Automation]:
    with get_client(sync_client=True) as client:
        return [one for one in client.read_automations() if one.name.startswith(PREFIX)]


def _put(wanted: list[AutomationCore]) -> None:
    there: dict[str, list[Automation]] = {}
    for one in _made():
        there.setdefault(one.name, []).append(one)
    with get_client(sync_client=True) as client:
        for automation in wanted:
            known = there.pop(automation.name, [])
            if known:
                client.update_automation(known.pop().id, automation)
            else:
                client.create_automation(automation)
            there[automation.name] = known
        for rest in there.values():
            for one in rest:
                client.delete_automation(one.id)
