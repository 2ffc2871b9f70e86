"""How the number of replicas follows the load.

Sources: vLLM's metrics (`vllm:num_requests_waiting` stays 0 right up to saturation, so requests that run are counted as well);
KEDA's ScaledObject (a target is an average over the replicas, so replicas = ceil(sum / target)); the HorizontalPodAutoscaler's
`behavior`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lockgate.domain.base import Frozen

_CRON = re.compile(r"\S+( \S+){4}")


class Window(Frozen):
    """A time of the week with at least so many replicas. KEDA's cron."""

    timezone: str
    """IANA name, e.g. `Europe/Berlin`."""
    start: str
    """Cron expression of five fields."""
    end: str
    replicas: Annotated[int, Field(ge=1)]

    @field_validator("start", "end")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if not _CRON.fullmatch(value):
            raise ValueError(f"{value!r} is not a cron expression of five fields")
        return value


class ToZero(Frozen):
    """When the last replica goes, and what brings it back. Never while a release is under way."""

    after_seconds: Annotated[int, Field(ge=60)]
    """Nobody asked for this long (KEDA's `cooldownPeriod`)."""
    query: Annotated[str, Field(min_length=1)]
    """PromQL above 0 while somebody asks, from the gateway: an engine that sleeps has no metrics. Whoever asks first gets 503
    until weights are loaded."""


class Scaling(Frozen):
    """One scaler for each slot. `serving.replicas` is the size of a slot while its candidate is judged: by then it has to
    carry whatever the steps send it."""

    by: Literal["keda", "hpa"] = "keda"
    """`keda`: a ScaledObject that asks Prometheus. `hpa`: a plain HorizontalPodAutoscaler on metrics of prometheus-adapter."""
    min: Annotated[int, Field(ge=1)] = 2
    """Replicas at the least, but for `to_zero`."""
    max: Annotated[int, Field(ge=1)]
    running_per_replica: Annotated[int, Field(ge=1)]
    """Requests in work that one replica should have: what the benchmark found within the service level."""
    waiting_per_replica: Annotated[int, Field(ge=1)] = 1
    """Requests that may wait for each replica."""
    kv_cache_percent: Annotated[int, Field(ge=10, le=100)] | None = 85
    """Mean use of the KV cache above which replicas are added; none for no such trigger."""
    buffer: Annotated[int, Field(ge=0)] = 0
    """Replicas more than the load needs, to bridge the minutes that weights take to load. KEDA only."""
    up_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """Load must be up for this long before replicas are added."""
    down_seconds: Annotated[int, Field(ge=0, le=3600)] = 600
    """Load must be down for this long before replicas are taken away, one at a time."""
    to_zero: ToZero | None = None
    """None keeps `min`. KEDA only."""
    windows: tuple[Window, ...] = ()
    """KEDA only."""
    during_canary: Literal["grow", "hold"] = "grow"
    """What the stable slot may do while a candidate is judged. `grow`: more replicas, never fewer. `hold`: neither."""
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    """Address that KEDA asks."""

    @model_validator(mode="after")
    def _possible(self) -> Scaling:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        if self.by == "hpa":
            needs_keda = {
                "buffer": self.buffer, "windows": self.windows, "to_zero": self.to_zero,
            }  # fmt: skip
            for name, value in needs_keda.items():
                if value:
                    raise ValueError(f"`{name}` needs `by: keda`")
        if any(window.replicas > self.max for window in self.windows):
            raise ValueError(f"a window asks for more than max {self.max} replicas")
        return self
