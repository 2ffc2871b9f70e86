"""Every error says what can be tried, and a task's error says which step it was."""

from __future__ import annotations

import inspect

import pytest

from lockgate import errors
from lockgate.cli import console
from lockgate.errors import GitError, LockgateError, RegistryError
from tasks.steps import step

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, LockgateError) and kind is not LockgateError
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_error_has_advice_of_its_own(kind: type[LockgateError]) -> None:
    assert "advice" in vars(kind)


def test_an_errors_own_hint_comes_before_the_advice_of_its_kind() -> None:
    assert GitError("m", hint="do this").next_step == "do this"
    assert GitError("m").next_step == GitError.advice


def test_the_innermost_step_is_named_and_printed_with_log_and_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @step(name="fetch-model")
    def fetch() -> None:
        raise RegistryError("broke off", log="/logs/fetch.log")

    @step(name="prepare")
    def prepare() -> None:
        fetch.fn()

    with pytest.raises(RegistryError) as raised:
        prepare.fn()
    assert console.report_error(raised.value) == 1
    said = capsys.readouterr().err.splitlines()
    assert "step: fetch-model" in said and "log: /logs/fetch.log" in said
    assert any(line.startswith("next: check the address") for line in said)
