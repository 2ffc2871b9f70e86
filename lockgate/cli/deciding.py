"""`approve`, `reject`, `hold`, `lift`, `audit`: what people decide, signed, and what became of it. No flow runs."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lockgate.cli import console
from lockgate.errors import EXIT_REFUSED, Refused, UsageError
from lockgate.settings import Settings

if TYPE_CHECKING:
    from tasks.deciding import Question

Model = Annotated[str, typer.Argument(help="Model name, as in the spec.", show_default=False)]
Environment = Annotated[str, typer.Option("--env", help="Environment.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Key = Annotated[
    Path | None,
    typer.Option(
        help="SSH private key that signs, or its .pub where ssh-agent holds it. Without it nothing is decided, only shown."
    ),
]
As = Annotated[
    str | None,
    typer.Option("--as", help="Signer's name in `approvers`; found by the key if not given."),
]
Step = Annotated[int | None, typer.Option(min=1, help="The step meant; refused if another waits.")]
Asked = Annotated[
    str | None,
    typer.Option("--request", help="Digest of the request meant, or how it begins."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before signing.")]


def register(app: typer.Typer) -> None:
    for command in (approve, reject, hold, lift, audit):
        app.command()(command)


def approve(
    model: Model,
    env: Environment = "local",
    step: Step = None,
    request: Asked = None,
    key: Key = None,
    name: As = None,
    reason: Annotated[str, typer.Option(help="Why; goes into the commit.")] = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Show what waits for approval and what speaks against it, and approve it by a signature.

    Whoever drives releases goes on when enough people have approved.
    """
    _decide("approve", model, env, step, request, key, name, reason, yes, as_json)


def reject(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why; goes into the commit.")],
    env: Environment = "local",
    step: Step = None,
    request: Asked = None,
    key: Key = None,
    name: As = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Reject what waits for approval, by a signature: the release ends, and its traffic goes back to stable."""
    _decide("reject", model, env, step, request, key, name, reason, yes, as_json)


def hold(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why; goes into the commit.")],
    env: Environment = "local",
    as_json: Json = False,
) -> None:
    """Stop the release under way where it is. `promote --resume` lets it go on, `rollback` ends it."""
    from tasks.deciding import hold as hold_release
    from tasks.workspace import Workspace

    state = hold_release(
        Workspace(Settings()), model, env, reason=reason, requested_by=getpass.getuser()
    )
    _print_state(state, as_json)


def lift(
    model: Model,
    candidate: Annotated[
        str, typer.Option(help="Digest of the denied candidate, or at least eight digits of it.")
    ],
    key: Annotated[Path, typer.Option(help="SSH private key that signs, or its .pub.")],
    reason: Annotated[str, typer.Option(help="Why; goes into the commit.")],
    env: Environment = "local",
    name: As = None,
    as_json: Json = False,
) -> None:
    """Take a candidate off the denylist, by a signature: automation may release it again."""
    from tasks.deciding import lift as lift_denial
    from tasks.workspace import Workspace

    state = lift_denial(
        Workspace(Settings()), model, env, candidate, key=key, name=name, reason=reason
    )
    _print_state(state, as_json)


def audit(
    model: Model,
    env: Annotated[str | None, typer.Option(help="Environment; all if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Who did what, when, on what evidence: from Git alone, every approval verified again.

    Exits 3 where a signature does not verify, an approval is missing, or the state was changed by hand; each is named.
    """
    from tasks.auditing import audit_model
    from tasks.workspace import Workspace

    found = audit_model(Workspace(Settings()), model, env)
    if as_json:
        console.print_json(found.to_data())
    else:
        for line in found.as_text():
            console.out.print(line, markup=False, highlight=False)
    if found.problems:
        raise typer.Exit(EXIT_REFUSED)


def _decide(
    word: Literal["approve", "reject"],
    model: str,
    env: str,
    step: int | None,
    request: str | None,
    key: Path | None,
    name: str | None,
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    from tasks import deciding
    from tasks.workspace import Workspace

    workspace = Workspace(Settings())
    question = deciding.ask(workspace, model, env)
    asked = question.request
    digest = asked.content_digest()
    checks = deciding.speaking(workspace, model, env)
    document: dict[str, Any] = {
        "request": asked.to_data(),
        "digest": digest,
        "approved_by": list(question.weighed.names),
        "refused": [refusal.to_data() for refusal in question.weighed.refusals],
        "checks": [{"tone": check.tone, "text": check.text} for check in checks],
    }
    if not as_json:
        _show(question, [(check.tone, check.text) for check in checks])
    if step is not None and step != asked.step + 1:
        raise Refused(f"step {asked.step + 1} waits, not step {step}: nothing was signed")
    if request is not None and not digest.hex.startswith(request.removeprefix("sha256:") or "-"):
        raise Refused(
            f"the request that waits is {digest.short}, not {request}: nothing was signed",
            hint="the release, its manifests or the policy changed: look again",
        )
    if key is None:
        if as_json:
            console.print_json(document)
        return
    _confirm(word, yes)
    done = deciding.decide(workspace, asked, word, key=key, name=name, reason=reason)
    if as_json:
        console.print_json(
            {**document, "by": done.by, "committed": done.committed, "commit": done.commit,
             "approvals": done.approved, "needed": asked.needed}
        )  # fmt: skip
        return
    known = "" if done.committed else " (as before: nothing was committed)"
    said = f"approved by {done.by}" if word == "approve" else f"rejected by {done.by}"
    count = f"; {done.approved} of {asked.needed} approvals" if word == "approve" else ""
    console.out.print(f"{said}{known}{count}; commit {done.commit[:10]}", markup=False)


def _show(question: Question, checks: list[tuple[str, str]]) -> None:
    asked = question.request
    roles = f" with role {' or '.join(asked.roles)}" if asked.roles else ""
    rows = [
        ("release", f"{asked.release} ({asked.model} in {asked.environment})"),
        ("step", f"{asked.step + 1}: {asked.weight}% of the traffic"),
        ("candidate", asked.candidate),
        ("manifests", asked.manifests),
        ("evidence", asked.evidence),
        ("started by", asked.requested_by or "nobody known: nobody can approve it"),
        ("asked", f"{asked.asked_at}, expires {asked.expires}"),
        ("takes", f"{asked.needed} approval{'s' * (asked.needed > 1)}{roles}"),
        ("approved by", ", ".join(question.weighed.names) or "nobody yet"),
        ("request", asked.content_digest()),
    ]
    for label, text in rows:
        console.out.print(f"{label:12} {text}", markup=False, highlight=False)
    for refusal in question.weighed.refusals:
        console.out.print(f"{'not counted':12} {refusal}", markup=False, highlight=False)
    marks = {"bad": "against", "open": "open", "good": "for"}
    for tone, text in sorted(checks, key=lambda check: [*marks].index(check[0])):
        console.out.print(f"{marks[tone]:12} {text}", markup=False, highlight=False)


def _confirm(word: str, yes: bool) -> None:
    if yes or not sys.stdin.isatty():
        return
    if not typer.confirm(f"{word.capitalize()} this?", err=True):
        raise UsageError("nothing was signed")


def _print_state(state: Any, as_json: bool) -> None:
    if as_json:
        console.print_json(state.to_data())
    else:
        console.out.print(
            f"{state.model}/{state.environment}: {state.phase}, generation {state.generation}",
            markup=False,
        )
