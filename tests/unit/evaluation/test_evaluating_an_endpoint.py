"""The harness's process against a server that answers from a table: scores, item ids, and answers that must not count."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockgate.adapters.evaluation import evaluate, read_samples
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence
from lockgate.domain.spec import EvaluationSpec, EvaluationTask
from lockgate.errors import EvaluationError

pytestmark = pytest.mark.slow

CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi"}


def continent(country: str) -> str:
    return {"Japan": "Asia", "Kenya": "Africa"}.get(country, "Europe")


class Server(ThreadingHTTPServer):
    """Knows the capitals of all countries but Kenya. One token is one character."""

    finish_reason = "stop"
    most_at_once = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def complete(self, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        text = "".join(map(chr, prompt))
        country = next(c for c in CAPITALS if c in text)
        answer = "Mombasa" if country == "Kenya" else CAPITALS[country]
        if not body.get("echo"):
            return {"text": f" {answer}.", "finish_reason": self.finish_reason}
        right = text.endswith(f" {answer}")
        likelihoods = [-0.1 if right else -5.0] * (len(prompt) + 1)
        top = [{"x": value} for value in likelihoods]
        return {
            "text": text,
            "finish_reason": "length",
            "logprobs": {"token_logprobs": likelihoods, "top_logprobs": top},
        }


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "table", "max_model_len": 512}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self._answer({"tokens": [ord(c) for c in body["prompt"]]})
            return
        with self.server.lock:
            self.server.under_way += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.under_way)
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        choices = [
            {"index": k, **self.server.complete(prompt, body)} for k, prompt in enumerate(prompts)
        ]
        with self.server.lock:
            self.server.under_way -= 1
        self._answer({"choices": choices})

    def _answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two tasks over the same four questions: one by generation, one by choice."""
    directory = tmp_path / "suite"
    directory.mkdir()
    rows = [
        {"id": f"capital/{country}", "continent": continent(country), "prompt": f"The capital of {country} is", "choices": ["Bonn", capital],
         "answer": 1, "word": capital}
        for country, capital in CAPITALS.items()
    ]  # fmt: skip
    (directory / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test",
        "doc_to_text": "prompt",
    }
    tasks = {
        "pick": {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer",
                 "metric_list": [{"metric": "acc"}]},
        "say": {"output_type": "generate_until", "doc_to_target": "word",
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
                "filter_list": [{"name": "strip", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
                "metric_list": [{"metric": "exact_match", "ignore_punctuation": True}]},
    }  # fmt: skip
    for name, task in tasks.items():
        declared = {"metadata": {"cluster": "continent"}} if name == "say" else {}
        text = yaml.safe_dump({"task": name, **common, **task, **declared})
        (directory / f"{name}.yaml").write_text(text)
    return directory


def run(server: Server, suite: Path, logs: Path, concurrency: int = 1) -> EvaluationEvidence:
    tasks = (
        EvaluationTask(name="pick", metric="acc,none", margin=0.1),
        EvaluationTask(name="say", metric="exact_match,strip", margin=0.1),
    )
    return evaluate(
        server.url,
        "table",
        EvaluationSpec(tasks=tasks, suite=str(suite), concurrency=concurrency),
        subject=Digest.of_bytes(b"candidate"),
        log_dir=logs,
        timeout=90,
    )


def test_every_item_is_scored_under_its_own_id_and_no_more_is_asked_at_once_than_allowed(
    server: Server, suite: Path, tmp_path: Path
) -> None:
    evidence = run(server, suite, tmp_path / "logs")
    expected = {f"capital/{c}": 0.0 if c == "Kenya" else 1.0 for c in CAPITALS}
    for task in evidence.tasks:
        assert {i.item: i.score for i in task.items} == expected, task.task
        assert task.score == 0.75
    assert server.most_at_once == 1
    pick, say = evidence.tasks
    assert {i.cluster for i in pick.items} == {None}
    assert {i.item: i.cluster for i in say.items} == {
        f"capital/{c}": continent(c) for c in CAPITALS
    }


def test_every_answer_is_kept_under_the_digest_that_the_evidence_names(
    server: Server, suite: Path, tmp_path: Path
) -> None:
    first = run(server, suite, tmp_path / "first")
    samples = read_samples(tmp_path / "first")
    assert Digest.of_json(samples) == first.samples
    kenya = next(s for s in samples if s["item"] == "capital/Kenya" and s["task"] == "say")
    assert "Mombasa" in json.dumps(kenya["resps"])
    assert run(server, suite, tmp_path / "second").samples == first.samples


def test_an_answer_that_the_server_aborted_is_an_error_and_not_a_wrong_answer(
    server: Server, suite: Path, tmp_path: Path
) -> None:
    server.finish_reason = "abort"
    with pytest.raises(EvaluationError, match="ended an answer with 'abort'") as caught:
        run(server, suite, tmp_path / "logs")
    assert caught.value.log == tmp_path / "logs" / "evaluation.log"
