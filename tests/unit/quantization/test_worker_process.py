"""The process that quantizes: what it says is taken only if it is whole, and nothing of it stays behind."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.quantization import ModelCard, worker_process
from lockgate.adapters.quantization.staging import staged
from lockgate.adapters.quantization.worker_process import run_worker
from lockgate.domain.scanning.licenses import front_matter, stated_in_card
from lockgate.errors import QuantizationError

PREAMBLE = """
import json, os, subprocess, sys, time
sys.path.insert(0, {workers!r})
job = json.loads(sys.stdin.readline())
def say(**event):
    print(json.dumps(event), flush=True)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a worker of the given lines; returns its result."""
    real = worker_process.WORKERS
    monkeypatch.setattr(worker_process, "WORKERS", tmp_path)

    def call(lines: str, *, timeout: float = 60, preamble: bool = True, **job: Any) -> Any:
        begin = (
            PREAMBLE.format(workers=str(real))
            if preamble
            else f"import sys\nsys.path.insert(0, {str(real)!r})\n"
        )
        (tmp_path / "worker.py").write_text(begin + lines)
        return run_worker(
            Path(sys.executable),
            "worker.py",
            job,
            log=tmp_path / "log",
            progress=None,
            seed=7,
            threads=1,
            timeout=timeout,
        )

    return call


def test_a_worker_gets_its_job_and_gives_its_result(run: Any) -> None:
    result = run(
        "from worker_channel import run\n"
        "def work(job, channel):\n"
        "    print('a library prints this')\n"
        "    channel.progress('half', 0.5)\n"
        "    return {'seed': job['seed'], 'source': job['source']}\n"
        "run(work)\n",
        preamble=False,
        source="here",
    )
    assert result == {"seed": 7, "source": "here"}


def test_what_a_worker_finds_unusable_is_told_in_its_words(run: Any, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="no linear layer") as caught:
        run(
            "from worker_channel import Unusable, run\n"
            "def work(job, channel):\n"
            "    raise Unusable('no linear layer')\n"
            "run(work)\n",
            preamble=False,
        )
    assert caught.value.log == tmp_path / "log"


def test_an_error_in_a_worker_is_named_and_its_traceback_is_in_the_log(
    run: Any, tmp_path: Path
) -> None:
    with pytest.raises(QuantizationError, match="MemoryError"):
        run(
            "from worker_channel import run\n"
            "def work(job, channel):\n"
            "    raise MemoryError('too large')\n"
            "run(work)\n",
            preamble=False,
        )
    assert "Traceback" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("raise SystemExit(0)", "without a result"),
        ("os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("print('no JSON')", "no event"),
        ("say(event='result', result=3)", "no event"),
        ("say(nothing=1)", "no event"),
        ("say(event='progress', stage='x', fraction='NaN', detail='')", "without a result"),
    ],
)
def test_an_end_without_a_whole_result_is_a_failure(run: Any, lines: str, said: str) -> None:
    with pytest.raises(QuantizationError, match=said):
        run(lines)


@pytest.mark.slow
def test_a_worker_that_is_stopped_takes_its_children_with_it(run: Any, tmp_path: Path) -> None:
    note = tmp_path / "child"
    with pytest.raises(QuantizationError, match="stopped after"):
        run(
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            f"open({str(note)!r}, 'w').write(str(child.pid))\n"
            "time.sleep(600)\n",
            timeout=3,
        )
    child = int(note.read_text())
    for _ in range(200):
        # A child whose parent is gone is reaped by init, not by us.
        if not Path(f"/proc/{child}").exists() or _is_dead(child):
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


def _is_dead(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_worker_sees_no_secret_of_its_caller(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LOCKGATE_KEY_PASSPHRASE", "secret")
    result = run("say(event='result', result=dict(os.environ))")
    assert "secret" not in json.dumps(result)
    assert result["HF_HUB_OFFLINE"] == "1"


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(QuantizationError), staged(target) as staging:
        (staging / "half").write_text("")
        raise QuantizationError("broke off")
    assert list(tmp_path.iterdir()) == []

    for content in ("first", "second"):
        with staged(target) as staging:
            (staging / "file").write_text(content)
    assert os.listdir(tmp_path) == ["model"]
    assert (target / "file").read_text() == "second"


def test_a_model_card_states_its_license_as_the_scan_reads_it() -> None:
    card = ModelCard(name="X", license="apache-2.0", base_model="a/b: c")
    front, problems = front_matter(card.readme("x.gguf"))
    assert problems == []
    assert stated_in_card(front) == ["apache-2.0"]
    assert front["base_model"] == "a/b: c"
