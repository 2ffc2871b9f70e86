"""One real answer from a server, before anybody trusts its health endpoint.

vLLM's `/health` says 200 while the engine hangs, and a broken quantization answers promptly with one token for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from lockgate.errors import ServingError

PROMPT = "The three largest cities of France are"
QUESTION = "Name the three largest cities of France."
MAX_TOKENS = 32

_NOT_A_CHAT_MODEL = (400, 404, 422, 501)


class DegenerateAnswer(ServingError):
    """The server answered, and what it said is no sensible text: that is the candidate's fault, and final."""


@dataclass(frozen=True)
class SmokeAnswer:
    """What the model said. `chat` is none for a model without a chat template."""

    completion: str
    chat: str | None


def degenerate(text: str) -> str | None:
    """Why `text` is no sensible answer, or none. Content is not judged: that is evaluation's work."""
    stripped = text.strip()
    if not stripped:
        return "it is empty"
    characters = Counter(c for c in stripped if not c.isspace())
    if len(stripped) >= 8:
        character, count = characters.most_common(1)[0]
        if count / characters.total() > 0.5:
            return f"more than half of it is {character!r}"
    words = Counter(stripped.split())
    if words.total() >= 8:
        word, count = words.most_common(1)[0]
        if count / words.total() > 0.8:
            return f"most of it is {word!r}"
    broken = sum(n for c, n in characters.items() if c == "\ufffd" or not c.isprintable())
    if broken / characters.total() > 0.3:
        return "it is not text"
    return None


def smoke_generation(
    base_url: str,
    model: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = 120.0,
) -> SmokeAnswer:
    """Asks the server at `base_url` (without `/v1`) for a completion and, where it can, a chat answer.

    `headers` can force a slot at a gateway. `ServingError` if there is no answer, or a degenerate one.
    """
    sampling: dict[str, Any] = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0}
    with httpx.Client(
        base_url=base_url, headers=dict(headers or {}), timeout=timeout_seconds, trust_env=False
    ) as client:
        completion = _answer(client, "/v1/completions", {**sampling, "prompt": PROMPT})
        if completion is None:
            raise ServingError(f"{base_url} does not serve completions of {model!r}")
        message = {"role": "user", "content": QUESTION}
        chat = _answer(client, "/v1/chat/completions", {**sampling, "messages": [message]})
    for kind, text in (("completion", completion), ("chat answer", chat)):
        reason = degenerate(text) if text is not None else None
        if reason is not None:
            raise DegenerateAnswer(
                f"the smoke generation's {kind} is degenerate, {reason}: {text!r}",
                hint="the weights, their quantization or the chat template are broken",
            )
    return SmokeAnswer(completion, chat)


WARM_UP_REQUESTS = 4


def warm_up(base_url: str, model: str, *, timeout_seconds: float = 120.0) -> None:
    """Requests whose answers nobody looks at, so that no measured one pays for what an engine does only once: a batch of
    several sequences, and log-probabilities of a prompt, of which the first takes seconds.

    An engine that refuses a kind of request (status 4xx) has nothing to be warmed there. `ServingError` if it breaks off.
    """
    sampling: dict[str, Any] = {"model": model, "max_tokens": 8, "temperature": 0}
    bodies = [{**sampling, "prompt": f"{PROMPT} {k}"} for k in range(WARM_UP_REQUESTS)]
    bodies.append({**sampling, "max_tokens": 1, "prompt": PROMPT, "echo": True, "logprobs": 1})
    with (
        httpx.Client(base_url=base_url, timeout=timeout_seconds, trust_env=False) as client,
        ThreadPoolExecutor(len(bodies)) as pool,
    ):
        try:
            for response in pool.map(
                lambda body: client.post("/v1/completions", json=body), bodies
            ):
                if response.status_code >= 500:
                    raise ServingError(
                        f"a warm-up request got {response.status_code}: {response.text[:500]}"
                    )
        except httpx.HTTPError as error:
            raise ServingError(f"a warm-up request failed: {error!r}") from error


def _answer(client: httpx.Client, path: str, body: dict[str, Any]) -> str | None:
    """The generated text; none if the server says that this model cannot do it."""
    try:
        response = client.post(path, json=body)
        if response.status_code in _NOT_A_CHAT_MODEL and path.endswith("chat/completions"):
            return None
        response.raise_for_status()
        choice = response.json()["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except httpx.HTTPStatusError as error:
        raise ServingError(
            f"the smoke generation got {error.response.status_code} from {path}: "
            f"{error.response.text[:500]}"
        ) from error
    except httpx.HTTPError as error:
        raise ServingError(f"the smoke generation at {path} failed: {error!r}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ServingError(f"the smoke generation at {path} got nonsense: {error!r}") from error
    if not isinstance(text, str):
        raise ServingError(f"the smoke generation at {path} got no text: {text!r}")
    return text
