"""The process in which the evaluation harness runs: `python -m lockgate.adapters._lm_eval_worker REQUEST.json RESULT.json`.

A process of its own so that a crash, a hang or a leak of the harness stays out of the release. Started only by
`lockgate.adapters.evaluation`. Progress goes to standard output, a JSON line each; logs to standard error. Exit codes: `Exit`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any


class Exit(IntEnum):
    DONE = 0
    CRASHED = 1
    UNKNOWN_TASK = 2
    BAD_ANSWER = 3


class WorkerError(Exception):
    def __init__(self, exit_code: Exit, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


CHAT = "chat"
COMPLETIONS = "completions"


class _Progress:
    """Counts answered requests over all tasks; the harness itself only draws bars."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.told = 0.0

    def answered(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.told > 0.5 or self.done >= self.total:
            self.told = now
            print(json.dumps({"done": self.done, "total": self.total}), flush=True)


def _models(progress: _Progress) -> dict[str, type]:
    """The harness's two API models, made strict: a broken-off or cut answer is an error, not a wrong answer."""
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
    from lm_eval.utils import RemoteTokenizer

    class Tokenizer(RemoteTokenizer):
        """Needs only `/tokenize`, which every vLLM server has, not `/tokenizer_info`, which is there on demand."""

        def _validate_server(self) -> None:
            self.encode("ready")

    def checked(outputs: dict[str, Any] | list[dict[str, Any]]) -> None:
        for output in outputs if isinstance(outputs, list) else [outputs]:
            for choice in output["choices"]:
                if choice.get("finish_reason") not in ("stop", "length"):
                    raise WorkerError(
                        Exit.BAD_ANSWER,
                        f"the server ended an answer with {choice.get('finish_reason')!r}",
                    )

    class Asking:
        """What both models share: progress, and as many requests at once as asked for."""

        _concurrent: int

        def __init__(self, *, concurrency: int, **arguments: Any) -> None:
            # With one at a time the harness would go by another road, past `amodel_call`.
            super().__init__(num_concurrent=max(2, concurrency), **arguments)  # type: ignore[call-arg]
            self.concurrency = concurrency

        async def get_batched_requests(self, *args: Any, **kwargs: Any) -> Any:
            road, self._concurrent = self._concurrent, self.concurrency
            try:
                return await super().get_batched_requests(*args, **kwargs)  # type: ignore[misc]
            finally:
                self._concurrent = road

        async def amodel_call(self, *args: Any, **kwargs: Any) -> Any:
            answers = await super().amodel_call(*args, **kwargs)  # type: ignore[misc]
            progress.answered()
            return answers

    class Completions(Asking, LocalCompletionsAPI):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(tokenizer_backend=None, **arguments)
            self.tokenizer_backend = "remote"
            self.tokenizer = Tokenizer(self.base_url, self.timeout)
            self.tokenized_requests = True
            self.longest_answer = 0

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            limits = [r.args[1].get("max_gen_toks", self._max_gen_toks) for r in requests]
            self.longest_answer = max(limits, default=0)
            return list(super().generate_until(requests, disable_tqdm))

        def tok_encode(self, string: Any, *args: Any, **kwargs: Any) -> Any:
            encoded = super().tok_encode(string, *args, **kwargs)
            if not isinstance(string, str):
                for tokens in encoded:
                    if len(tokens) + self.longest_answer > self.max_length:
                        raise WorkerError(Exit.BAD_ANSWER, _too_long(self.max_length))
            return encoded

        def batch_loglikelihood_requests(self, chunks: Iterable[Any]) -> Any:
            chunks = [list(chunk) for chunk in chunks]
            for chunk in chunks:
                for _, context, continuation in chunk:
                    # The harness would cut the beginning off and score what is left.
                    if len(context) + len(continuation) > self.max_length:
                        raise WorkerError(Exit.BAD_ANSWER, _too_long(self.max_length))
            return super().batch_loglikelihood_requests(chunks)

        @staticmethod
        def parse_generations(outputs: Any, **kwargs: Any) -> list[str]:
            checked(outputs)
            return list(LocalCompletionsAPI.parse_generations(outputs, **kwargs))

    class Chat(Asking, LocalChatCompletion):
        def parse_generations(self, outputs: Any, **kwargs: Any) -> list[str]:
            checked(outputs)
            return list(super().parse_generations(outputs, **kwargs))

    return {COMPLETIONS: Completions, CHAT: Chat}


def _too_long(limit: int) -> str:
    return f"an item does not fit into the {limit + 1} tokens that the server takes (max_model_len)"


def _endpoint_of(task: Any) -> str:
    metadata = task.get_config("metadata") or {}
    return CHAT if metadata.get("endpoint") == CHAT else COMPLETIONS


def _item_id(sample: dict[str, Any]) -> str:
    """The item's own id where the data has one, else its place in the data set, which the suite's digest pins."""
    own = sample["doc"].get("id") if isinstance(sample["doc"], dict) else None
    return str(own) if isinstance(own, str | int) else f"#{sample['doc_id']}"


def _cluster(sample: dict[str, Any], field: str | None, task: str) -> str | None:
    """The document that the item is about: the field of its data that `metadata.cluster` of the task names."""
    if field is None:
        return None
    try:
        return str(sample["doc"][field])
    except (KeyError, TypeError) as error:
        raise WorkerError(
            Exit.UNKNOWN_TASK,
            f"task {task} declares metadata.cluster {field!r}, but item {_item_id(sample)} has no such field",
        ) from error


def _scores(
    samples: list[dict[str, Any]], metric_key: str, task: str, cluster: str | None = None
) -> list[tuple[str, float, str | None]]:
    metric, _, filter_name = metric_key.rpartition(",")
    chosen = [s for s in samples if s["filter"] == filter_name and metric in s]
    if not chosen:
        known = sorted({f"{m},{s['filter']}" for s in samples for m in s["metrics"]})
        raise WorkerError(
            Exit.UNKNOWN_TASK,
            f"task {task} has no metric {metric_key!r}; it has {', '.join(known)}",
        )
    scores = []
    for sample in chosen:
        value = sample[metric]
        if not isinstance(value, bool | int | float) and not hasattr(value, "__float__"):
            raise WorkerError(
                Exit.UNKNOWN_TASK, f"metric {metric_key!r} of {task} has no score an item"
            )
        score = float(value)
        if not math.isfinite(score):
            raise WorkerError(Exit.BAD_ANSWER, f"item {_item_id(sample)} of {task} scored {score}")
        scores.append((_item_id(sample), score, _cluster(sample, cluster, task)))
    return scores


def _load(request: dict[str, Any]) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The harness's task manager, and the leaves of every task asked for, their data loaded."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=request["include_path"], include_defaults=request["include_defaults"]
    )
    leaves: dict[str, dict[str, Any]] = {}
    for task in request["tasks"]:
        name = task["name"]
        if name not in manager.all_tasks:
            close = [t for t in manager.all_tasks if not request["include_defaults"]]
            listed = f"; the suite has {', '.join(sorted(close))}" if close else ""
            raise WorkerError(Exit.UNKNOWN_TASK, f"there is no evaluation task {name!r}{listed}")
        leaves[name] = manager.load([name])["tasks"]
    return manager, leaves


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """Digests of the data that the tasks ask about, without asking: what the Hub has under a name may change."""
    _, leaves = _load(request)
    found = {}
    for tasks in leaves.values():
        for name, leaf in tasks.items():
            digest = hashlib.sha256()
            shots = leaf.fewshot_docs() if leaf.get_config("num_fewshot") else ()
            for doc in (*leaf.eval_docs, *shots):
                digest.update(json.dumps(doc, sort_keys=True, default=str).encode() + b"\n")
            found[name] = digest.hexdigest()
    return {"data": found}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load the tasks, ask the endpoint, and return every item's score."""
    import lm_eval
    from lm_eval.evaluator import simple_evaluate

    manager, leaves = _load(request)
    progress = _Progress()
    models = _models(progress)
    samples: dict[str, list[dict[str, Any]]] = {}
    wanted = {name: leaf for tasks in leaves.values() for name, leaf in tasks.items()}
    if not wanted:
        raise WorkerError(Exit.UNKNOWN_TASK, "the tasks asked for are empty groups")
    for leaf in wanted.values():
        size = len(leaf.eval_docs)
        limit = min(size, request["limit"] or size)
        choices = len(leaf.doc_to_choice(leaf.eval_docs[0])) if _is_choice(leaf) else 1
        progress.total += limit * choices
    for endpoint, path in ((COMPLETIONS, "/v1/completions"), (CHAT, "/v1/chat/completions")):
        names = [name for name, leaf in wanted.items() if _endpoint_of(leaf) == endpoint]
        if not names:
            continue
        model = models[endpoint](
            model=request["model"],
            base_url=request["url"] + path,
            concurrency=request["concurrency"],
            max_retries=2,
            max_length=request["max_length"],
            timeout=request["request_seconds"],
        )
        results = simple_evaluate(
            model=model,
            tasks=names,
            task_manager=manager,
            limit=request["limit"],
            apply_chat_template=endpoint == CHAT,
            bootstrap_iters=0,
            log_samples=True,
        )
        samples.update(results["samples"])
    answers = []
    with Path(request["samples_path"]).open("w", encoding="utf-8") as file:
        for name, rows in samples.items():
            for row in rows:
                line = {"task": name, "item": _item_id(row), **row}
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    for task in request["tasks"]:
        scores: list[tuple[str, float, str | None]] = []
        for leaf_name, leaf in leaves[task["name"]].items():
            size = len(leaf.eval_docs)
            declared = (leaf.get_config("metadata") or {}).get("cluster")
            found = _scores(samples[leaf_name], task["metric"], leaf_name, declared)
            expected = min(size, request["limit"] or size)
            if len({item for item, _, _ in found}) != expected or len(found) != expected:
                raise WorkerError(
                    Exit.BAD_ANSWER, f"{leaf_name}: {len(found)} scores for {expected} items"
                )
            prefix = f"{leaf_name}/" if len(leaves[task["name"]]) > 1 else ""
            scores += [
                (prefix + item, score, None if document is None else prefix + document)
                for item, score, document in found
            ]
        answers.append({**task, "items": scores})
    return {"harness": f"lm-eval {lm_eval.__version__}", "tasks": answers}


def _is_choice(task: Any) -> bool:
    return bool(task.OUTPUT_TYPE == "multiple_choice")


def main(arguments: list[str]) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    request = json.loads(Path(arguments[0]).read_text())
    result = Path(arguments[1])
    try:
        answer = describe(request) if "url" not in request else run(request)
        code = Exit.DONE
    except WorkerError as error:
        answer = {"error": str(error)}
        code = error.exit_code
    except Exception as error:
        logging.exception("the harness crashed")
        answer = {"error": f"{type(error).__name__}: {error}"}
        code = Exit.CRASHED
    result.write_text(json.dumps(answer, allow_nan=False))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
