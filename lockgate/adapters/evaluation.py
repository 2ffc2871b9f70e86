"""Evaluation: lm-eval's tasks asked of a served model, one score an item.

The harness runs in a process of its own (`_lm_eval_worker`) against the model's HTTP endpoint, so the same code evaluates a
process here and a pod elsewhere. What comes back is complete or an error: every item of every task has a finite score.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence, ItemScore, TaskScore
from lockgate.domain.spec import EvaluationSpec
from lockgate.errors import EvaluationError, UsageError
from lockgate.evaluation_suite import tasks_directory
from lockgate.supervision import log_tail, run_program

BUILTIN = "builtin"
HARNESS_TASKS = "lm-eval"
"""Value of `EvaluationSpec.suite` for the tasks that lm-eval carries itself; their data sets come from the Hub."""

REQUEST_SECONDS = 300
DATA_SECONDS = 1800
"""Until the data of lm-eval's own tasks is there."""
SAMPLES_FILE = "samples.jsonl"

_UNKNOWN_TASK = 2

Report = Callable[[float, float | None], None]


def harness() -> str:
    """Name and version of the harness that `evaluate` would use."""
    return f"lm-eval {version('lm-eval')}"


def suite_digest(spec: EvaluationSpec) -> Digest:
    """Digest over everything that decides which questions are asked and how answers are scored.

    A directory: its files, by relative path and content. lm-eval's own tasks: the harness's version, which carries them, and
    their data as the Hub has it now, so that scores over other data are looked up and compared for nobody.
    Raises UsageError if the directory is not there or holds no task, or there is no such task; EvaluationError if the data
    cannot be had.
    """
    if spec.suite == HARNESS_TASKS:
        data = _harness_data(tuple(task.name for task in spec.tasks))
        return Digest.of_json({"suite": HARNESS_TASKS, "harness": harness(), "data": data})
    directory = _suite_directory(spec)
    files = {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _suite_files(directory)
    }
    return Digest.of_json({"suite": files})


@lru_cache
def _harness_data(tasks: tuple[str, ...]) -> dict[str, str]:
    """Digest of each task's data. Asked once a process: one release is measured over one state of the data."""
    scratch = Path(tempfile.mkdtemp(prefix="lockgate-evaluation-"))
    request = {
        "tasks": [{"name": name} for name in tasks],
        "include_path": None,
        "include_defaults": True,
    }
    answer = _run_worker(
        request, scratch, log=scratch / "data.log", timeout=DATA_SECONDS, offline=False
    )
    shutil.rmtree(scratch, ignore_errors=True)  # after a failure its log is kept
    return {str(name): str(digest) for name, digest in answer["data"].items()}


def evaluate(
    endpoint_url: str,
    model_name: str,
    spec: EvaluationSpec,
    *,
    subject: Digest,
    log_dir: Path,
    progress: Report | None = None,
    timeout: float = 3600.0,
) -> EvaluationEvidence:
    """Ask the model at `endpoint_url` (without `/v1`) every item of `spec.tasks`.

    Writes `evaluation.log` and every question with its answer (`samples.jsonl`) into `log_dir`. `progress(done, total)` counts
    requests. Raises UsageError for an unknown task, metric or suite, EvaluationError if the server or the harness failed,
    an answer was cut off, an item lacks a finite score, or `timeout` seconds were not enough.
    """
    digest = suite_digest(spec)
    log_dir = log_dir.absolute()
    log_dir.mkdir(parents=True, exist_ok=True)
    log = log_dir / "evaluation.log"
    url = endpoint_url.rstrip("/").removesuffix("/v1")
    started = time.monotonic()
    local = None if spec.suite == HARNESS_TASKS else _suite_directory(spec)
    request = {
        "url": url,
        "model": model_name,
        "tasks": [{"name": t.name, "metric": t.metric} for t in spec.tasks],
        "include_path": None if local is None else str(local),
        "include_defaults": local is None,
        "limit": spec.limit,
        "concurrency": spec.concurrency,
        "max_length": _max_length(url, model_name, log),
        "request_seconds": REQUEST_SECONDS,
        "samples_path": str(log_dir / SAMPLES_FILE),
    }
    with tempfile.TemporaryDirectory(prefix="lockgate-evaluation-") as scratch:
        answer = _run_worker(
            request, Path(scratch), log=log, timeout=timeout, offline=local is not None,
            # Data files of local tasks are named relative to the suite.
            directory=local, progress=progress,
        )  # fmt: skip
    return EvaluationEvidence(
        subject=subject,
        suite=digest,
        harness=answer["harness"],
        tasks=tuple(_task_scores(answer, spec, log)),
        seconds=round(time.monotonic() - started, 3),
        samples=Digest.of_json(read_samples(log_dir)),
    )


def _run_worker(
    request: dict[str, Any],
    scratch: Path,
    *,
    log: Path,
    timeout: float,
    offline: bool,
    directory: Path | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """The worker's answer to one request."""
    request_file, result_file = scratch / "request.json", scratch / "result.json"
    request_file.write_text(json.dumps(request))
    ended = run_program(
        [
            sys.executable,
            "-m",
            "lockgate.adapters._lm_eval_worker",
            str(request_file),
            str(result_file),
        ],
        log=log,
        timeout=timeout,
        environment=_environment(scratch, offline=offline),
        directory=directory,
        on_line=lambda line: _told(line, progress),
    )
    if ended.timed_out:
        raise EvaluationError(
            f"the evaluation did not end within {timeout:.0f} s",
            hint="give it more time, or fewer items (`evaluation.limit`)",
            log=log,
        )
    answer = _read_answer(result_file, ended.code, log)
    if ended.code == _UNKNOWN_TASK:
        raise UsageError(
            answer["error"], log=log, hint="see `evaluation.tasks` in the release spec"
        )
    if ended.code != 0:
        raise EvaluationError(
            f"the evaluation failed: {answer['error']}",
            log=log,
            hint="the end of the log says more; a server's own log lies beside it",
        )
    return answer


def read_samples(log_dir: Path) -> list[dict[str, Any]]:
    """Every question with its answer, as `evaluate` wrote them: the document whose digest is `EvaluationEvidence.samples`.

    Raises EvaluationError if they are not there.
    """
    path = log_dir / SAMPLES_FILE
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"the answers in {path} cannot be read: {error}") from error


def _task_scores(answer: dict[str, Any], spec: EvaluationSpec, log: Path) -> Iterator[TaskScore]:
    answered = {(t["name"], t["metric"]): t["items"] for t in answer["tasks"]}
    for task in spec.tasks:
        items = answered.get((task.name, task.metric)) or []
        if not items:
            raise EvaluationError(f"task {task.name} came back without items", log=log)
        scores = tuple(
            ItemScore(item=item, score=score, cluster=cluster)
            for item, score, cluster in sorted(items, key=lambda row: row[0])
        )
        if len({s.item for s in scores}) != len(scores):
            raise EvaluationError(f"task {task.name} has two items of the same id", log=log)
        yield TaskScore(
            task=task.name,
            metric=task.metric,
            score=sum(s.score for s in scores) / len(scores),
            items=scores,
        )


def _suite_directory(spec: EvaluationSpec) -> Path:
    directory = tasks_directory() if spec.suite == BUILTIN else Path(spec.suite).absolute()
    if not any(p.suffix in (".yaml", ".yml") for p in _suite_files(directory)):
        raise UsageError(
            f"evaluation suite {spec.suite!r} is not a directory with lm-eval tasks (YAML files)",
            hint=f"`evaluation.suite` is {BUILTIN!r}, {HARNESS_TASKS!r} or a directory",
        )
    return directory


def _suite_files(directory: Path) -> list[Path]:
    return sorted(
        path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def _max_length(url: str, model_name: str, log: Path) -> int:
    """The server's own limit of tokens a request; also the first sign that it is there and has the model."""
    try:
        response = httpx.get(f"{url}/v1/models", timeout=30)
        response.raise_for_status()
        served = {m["id"]: m.get("max_model_len") for m in response.json()["data"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"the model server at {url} does not list its models: {error}", log=log
        ) from error
    if model_name not in served:
        raise EvaluationError(f"the server at {url} serves {sorted(served)}, not {model_name!r}")
    return int(served[model_name] or 2048)


def _environment(scratch: Path, *, offline: bool) -> dict[str, str]:
    quiet = {
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if not offline:
        return quiet
    return {
        **quiet,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        # A cache of its own: the data sets' cache goes by file name and time, not by content.
        "HF_HOME": str(scratch / "huggingface"),
    }


def _told(line: str, progress: Report | None) -> bool:
    """Whether `line` was a progress line of the worker."""
    if not line.startswith('{"done"'):
        return False
    if progress is not None:
        told = json.loads(line)
        progress(float(told["done"]), float(told["total"]) or None)
    return True


def _read_answer(path: Path, code: int, log: Path) -> dict[str, Any]:
    try:
        answer = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"the evaluation harness ended with status {code} and no result:\n{log_tail(log)}",
            log=log,
        ) from error
    if not isinstance(answer, dict):
        raise EvaluationError("the evaluation harness answered nonsense", log=log)
    return answer
