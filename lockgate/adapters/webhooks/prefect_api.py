"""The two calls of Prefect's HTTP API that turn a delivery into a flow run, without Prefect's client: the process that the
world can reach loads as little as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from lockgate.errors import DeliveryError, LockgateError


class Unavailable(DeliveryError):
    """Prefect does not answer, is not well, does not let us in, or has no such deployment: true of every delivery."""


class PrefectApi:
    """A server's API at `url()` (asked each time: a workspace's own server may come back on another port)."""

    def __init__(
        self,
        url: Callable[[], str],
        *,
        key: str | None = None,
        auth: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        user, _, password = (auth or "").partition(":")
        self._url = url
        self._client = httpx.Client(
            headers=headers, auth=(user, password) if auth else None, timeout=timeout,
            trust_env=False,
        )  # fmt: skip

    def close(self) -> None:
        self._client.close()

    def create_flow_run(
        self,
        deployment: str,
        parameters: Mapping[str, Any],
        *,
        idempotency_key: str,
        name: str,
        tags: tuple[str, ...] = (),
    ) -> str:
        """A run of `FLOW/DEPLOYMENT`, scheduled for now; returns its id. The same key gives the same run again.

        Raises:
            Unavailable: try again later, this and all others.
            DeliveryError: Prefect does not take this one.
        """
        found = self._ask("GET", f"/deployments/name/{deployment}")
        if found.status_code == 404:
            raise Unavailable(
                f"Prefect has no deployment {deployment}", hint="`prefect deploy --all`"
            )
        made = self._ask(
            "POST",
            f"/deployments/{_id(found)}/create_flow_run",
            {
                "parameters": dict(parameters), "idempotency_key": idempotency_key, "name": name,
                "tags": list(tags),
            },
        )  # fmt: skip
        return _id(made)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            answer = self._client.request(method, self._url().rstrip("/") + path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"Prefect's API does not answer: {error}") from error
        except LockgateError as error:
            raise Unavailable(f"there is no Prefect server: {error.message}") from error
        status = answer.status_code
        if status in (401, 403, 408, 429) or status >= 500:
            raise Unavailable(f"Prefect's API answers {status}")
        if not answer.is_success and status != 404:
            raise DeliveryError(f"Prefect does not take the flow run: {status} {answer.text[:300]}")
        if status == 404 and method == "POST":
            raise Unavailable("the deployment was just removed")
        return answer


def _id(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable("what answers is not Prefect's API") from error
