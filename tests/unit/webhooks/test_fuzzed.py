"""The endpoints against their own OpenAPI, by schemathesis: whatever is sent, signed or not, the answer is one that is declared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.adapters.webhooks import Outbox, create_app
from lockgate.domain.webhooks import Sender
from tests.amounts import examples
from tests.unit.webhooks.payloads import NOW, SECRET, Sent
from tests.unit.webhooks.test_reception import reception

pytestmark = pytest.mark.slow
FUZZ = settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Any]:
    """One reception for all examples of an endpoint: what one leaves behind the next one finds."""
    import schemathesis  # a second and a half, for nobody else

    box = Outbox(tmp_path / "deliveries.sqlite")
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(reception(box)))
    box.close()


def declared(case: Any, answer: Any) -> None:
    """The answer is none of a server's error, and one that the endpoint declares."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    conforms = (
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    )
    case.validate_response(answer, checks=[not_a_server_error, *conforms])


def cases(api: Any, path: str, method: str) -> st.SearchStrategy[Any]:
    """What fits the endpoint's schema, and what does not."""
    from schemathesis.generation import GenerationMode

    operation = api[path][method]
    modes = (
        (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if method == "POST"
        else (GenerationMode.POSITIVE,)
    )
    return st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])


def test_every_endpoint_is_declared(api: Any) -> None:
    found = {(o.ok().path, o.ok().method.upper()) for o in api.get_all_operations()}
    assert found == {("/healthz", "GET"), *((f"/hooks/{s}", "POST") for s in Sender)}


@pytest.mark.parametrize(
    ("path", "method"), [("/healthz", "GET"), *((f"/hooks/{s}", "POST") for s in Sender)]
)
def test_whatever_a_stranger_sends_the_answer_is_a_declared_one(
    api: Any, path: str, method: str
) -> None:
    @FUZZ
    @given(cases(api, path, method))
    def sends(case: Any) -> None:
        answer = case.call()
        declared(case, answer)
        assert answer.status_code != 202

    sends()


@pytest.mark.parametrize("sender", Sender)
def test_whatever_somebody_sends_who_knows_the_secret_the_answer_is_a_declared_one(
    api: Any, sender: Sender
) -> None:
    @FUZZ
    @given(cases(api, f"/hooks/{sender}", "POST"))
    def sends(case: Any) -> None:
        sent = Sent(sender, json.loads(json.dumps(case.body, default=str)))
        answer = case.call(headers=sent.signed(SECRET, NOW), data=sent.body)
        declared(case, answer)
        # It is past the check of who sends: what is left is about what was sent.
        assert answer.status_code in (200, 202, 400)

    sends()
