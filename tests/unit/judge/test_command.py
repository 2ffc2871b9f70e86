"""`lockgate judge` at the command line: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lockgate.cli import main
from tests.unit.judge.test_verdicts_on_traces import DEMO
from tests.unit.judge.traces import Server, trace


def said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, list[dict[str, Any]], str]:
    monkeypatch.setattr(sys, "argv", ["lockgate", "judge", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), [json.loads(line) for line in out.splitlines()], err


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "judge.yaml"
    path.write_text(json.dumps(DEMO))
    return str(path)


def written(path: Path, canary: Server, seconds: int) -> str:
    path.write_text("".join(line + "\n" for line in trace(Server(), canary, seconds, 1)))
    return str(path)


def test_each_trace_is_a_line_and_one_that_fails_decides_how_the_command_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    short = written(tmp_path / "short.jsonl", Server(), 10)
    slow = written(tmp_path / "slow.jsonl", Server(ttft=3.0), 40)
    code, lines, _ = said(capsys, monkeypatch, "--config", config, short, slow)
    assert code == 3
    assert [(line["trace"], line["verdict"]) for line in lines] == [
        (short, "insufficient_data"),
        (slow, "fail"),
    ]
    assert lines[1]["decided_at"] <= 30
    assert {"name", "verdict", "estimate", "interval", "evidence", "margin", "reason"} <= set(
        lines[1]["metrics"][0]
    )
    assert said(capsys, monkeypatch, "--config", config, short)[0] == 1


def test_what_is_followed_is_answered_after_every_pair_of_scrapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    text = "".join(line + "\n" for line in trace(Server(), Server(ttft=3.0), 30, 1))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, lines, _ = said(capsys, monkeypatch, "--config", config, "--follow")
    assert code == 3
    assert len(lines) >= 30
    assert [lines[0]["verdict"], lines[-1]["verdict"]] == ["insufficient_data", "fail"]


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08\x00\xff\n\n", b"{}\n{}\n", b"[" * 100_000])
def test_what_is_no_trace_is_an_error_that_names_the_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    code, lines, err = said(capsys, monkeypatch, str(path))
    assert (code, lines) == (2, [])
    assert "line 1" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--prometheus", "http://127.0.0.1:9"], "--model and --from"),
        (["--prometheus", "http://127.0.0.1:9", "t.jsonl"], "or --prometheus"),
        (["--prometheus", "http://127.0.0.1:9", "--model", "m", "--from", "today"], "no time"),
        (["--prometheus", "http://127.0.0.1:9", "--model", "m", "--from", "2026-11-28T14:00:00"], "time zone"),
        (["--prometheus", "http://127.0.0.1:9", "--model", "m", "--from", "9", "--to", "9"], "before"),
        (["--prometheus", "http://127.0.0.1:9", "--model", "m", "--from", "9", "--baseline", "b"], "itself"),
    ],
)  # fmt: skip
def test_what_of_a_prometheus_is_meant_has_to_be_said(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    word: str,
) -> None:
    code, lines, err = said(capsys, monkeypatch, *arguments)
    assert (code, lines) == (2, [])
    assert word in " ".join(err.split())


def test_a_prometheus_that_is_away_gives_no_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, lines, err = said(
        capsys, monkeypatch, "--prometheus", "http://u:s3cret@127.0.0.1:9", "--model", "m",
        "--from", "2026-11-28T14:00:00Z", "--to", "2026-11-28T14:01:00+00:00",
    )  # fmt: skip
    assert (code, lines) == (1, [])
    assert "does not answer" in " ".join(err.split())
    assert "s3cret" not in err
