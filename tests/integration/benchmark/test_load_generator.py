"""The real load generator against a small server whose behaviour is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from stalling_server import stalling

from lockgate.adapters.benchmark.generator import LoadGenerator, load_generator
from lockgate.adapters.benchmark.results import Load, read_load
from lockgate.domain.load import BenchmarkProfile, planned
from lockgate.errors import BenchmarkError

SECONDS = 60.0
FROM, UNTIL = 1.0, 2.5
OPEN = BenchmarkProfile(name="open", requests=80, rate=20.0, prompt_tokens=8, output_tokens=3)
CLOSED = BenchmarkProfile(name="closed", requests=80, prompt_tokens=8, output_tokens=3)


@dataclass(frozen=True)
class Server:
    base_url: str
    model_name: str = "smol"


@pytest.fixture(scope="module")
def generator(
    serving_python: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoadGenerator]:
    log = tmp_path_factory.mktemp("generator") / "benchmark.log"
    with load_generator(serving_python, tokenizer=demo_model, log=log, timeout=300.0) as made:
        yield made


def sent(generator: LoadGenerator, url: str, profile: BenchmarkProfile) -> Load:
    plan = planned(profile, block=0)
    return read_load(
        profile, plan, generator.send(Server(url), profile, plan, timeout=SECONDS), generator.log
    )


def test_a_stall_is_counted_against_every_request_that_was_due_in_it(
    generator: LoadGenerator,
) -> None:
    """Co-ordinated omission: a generator that waits with the server sees one slow request where users see many."""
    with stalling((FROM, UNTIL)) as url:
        load = sent(generator, url, OPEN)
    assert load.failed == 0
    due = [request.at for request in planned(OPEN, block=0)]
    waits = [UNTIL - at for at in due if FROM + 0.1 <= at < UNTIL - 0.2]
    assert len(waits) > 15
    measured = [
        timed.ttft
        for timed, at in zip(load.answered, due, strict=True)
        if FROM + 0.1 <= at < UNTIL - 0.2
    ]
    # The server's clock starts when the first request arrives, up to a tenth of a second after it was due.
    assert all(wait - 0.1 < ttft for wait, ttft in zip(waits, measured, strict=True))
    with stalling((0.05, 0.55)) as url:
        waited = sent(generator, url, CLOSED)
    assert sum(timed.ttft > 0.3 for timed in waited.answered) == 1


def test_every_token_is_timed_and_a_shorter_answer_is_a_failed_request(
    generator: LoadGenerator,
) -> None:
    with stalling() as url:
        load = sent(generator, url, CLOSED)
    assert (len(load.answered), load.failed) == (80, 0)
    assert all(len(timed.gaps) == 2 for timed in load.answered)
    with stalling(cut=True) as url:
        cut = sent(generator, url, CLOSED)
    assert (len(cut.answered), cut.failed) == (0, 80)


def test_a_server_that_is_not_there_fails_every_request_and_not_the_generator(
    generator: LoadGenerator,
) -> None:
    with stalling() as url:
        pass
    gone = sent(generator, url, CLOSED)
    assert (len(gone.answered), gone.failed) == (0, 80)


def test_a_load_that_takes_longer_than_its_time_is_an_error_that_says_so(
    generator: LoadGenerator,
) -> None:
    """Last in this file: it ends the generator of all of them."""
    plan = planned(CLOSED, block=0)
    with stalling((0.0, 30.0)) as url, pytest.raises(BenchmarkError, match="did not end within"):
        generator.send(Server(url), CLOSED, plan, timeout=2.0)
    with stalling() as url, pytest.raises(BenchmarkError):
        generator.send(Server(url), CLOSED, plan, timeout=2.0)
