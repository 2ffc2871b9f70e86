"""The part of a release spec that says how a model is served, and on what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.scaling import Scaling


class Hardware(Frozen):
    """What a replica runs on, as far as it decides which recipes can be served."""

    device: Literal["cpu", "cuda", "rocm", "xpu"]
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d$")] | None = None
    """NVIDIA's compute capability, e.g. `9.0`. None: that of the accelerator, where one is named."""
    accelerator: str | None = None
    """Name in docs/sizing.md, e.g. `h100-80gb`. None: what a replica takes in device memory is not checked."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of one accelerator as its driver reports it; of one that is not listed, or where it is not all there."""
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] = 8
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Nodes that one replica may span."""
    mig: tuple[str, ...] = ()
    """MIG profiles that the cluster offers, e.g. `3g.40gb`."""
    time_slices: Annotated[int, Field(ge=1, le=64)] = 1
    """Replicas that the device plugin makes of one GPU. They share its memory without any wall between them."""


class Resources(Frozen):
    """What one replica asks of its node."""

    cpu: Annotated[int, Field(ge=1)] = 1
    """Whole cores: the embedded cluster and Kubernetes' static CPU policy give them exclusively."""
    memory: Annotated[str, Field(pattern=r"^\d+(Mi|Gi)$")] = "4Gi"
    gpu: Annotated[int, Field(ge=0)] = 0
    """GPUs of one pod (`nvidia.com/gpu`), or of what `gpu_resource` names."""
    gpu_resource: Annotated[str, Field(pattern=r"^(mig-\d+g\.\d+gb|gpu\.shared)$")] | None = None
    """In place of whole GPUs: `mig-<profile>` (mixed strategy) or `gpu.shared` (time slices, renamed by the device plugin)."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(serialize(self), ("gpu_resource",))

    @model_validator(mode="after")
    def _sliced(self) -> Resources:
        if self.gpu_resource is not None and self.gpu != 1:
            raise ValueError("a replica takes one slice of a GPU: `gpu: 1`")
        return self


def _without(data: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """`data` without those of `names` that say nothing: a key that came later must not change an older candidate's digest."""
    return {key: value for key, value in data.items() if value is not None or key not in names}


class Parallel(Frozen):
    """How one replica is split over GPUs."""

    tensor: Annotated[int, Field(ge=1)] = 1
    """GPUs that share every layer; they belong into one node."""
    pipeline: Annotated[int, Field(ge=1)] = 1
    """Groups of layers, one behind the other."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """More than one: a LeaderWorkerSet, a pod a node, in place of a Deployment."""


class ServingSpec(Frozen):
    """How the model is served: part of the candidate, so a change here is a release of its own."""

    engine: str = "vllm"
    """Name of a module in `serving/engines/`."""
    served_model_name: str
    """Name that clients ask for. The same in both slots."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Longest context in tokens; none leaves it to the engine."""
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    """Sequences in one batch at most; none leaves it to the engine."""
    dtype: str | None = None
    """Data type of weights and activations; none leaves it to the engine."""
    args: tuple[str, ...] = ()
    """Further engine arguments, verbatim. Arguments that Lockgate owns (host, port, model, name) are refused."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment of the engine. Never secrets: this is committed to Git."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Replicas in each slot."""
    resources: Resources = Resources()
    parallel: Parallel | None = None
    """None: one GPU, or what `args` say."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each GPU's memory that the engine may take; none leaves it to the engine. Needed for time slices."""
    scaling: Scaling | None = None
    """None: always `replicas`."""
    drain_seconds: Annotated[int, Field(ge=1)] = 45
    """How long streams in flight may go on after the server was told to stop."""
    pre_stop_seconds: Annotated[int, Field(ge=0)] = 15
    """How long a stopping server still takes requests, until every gateway has forgotten it."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(serialize(self), ("parallel", "gpu_memory_utilization", "scaling"))

    @model_validator(mode="after")
    def _fits_together(self) -> ServingSpec:
        split = self.parallel or Parallel()
        if self.parallel is not None:
            wanted = split.tensor * split.pipeline
            there = self.resources.gpu * split.nodes
            if wanted != there:
                raise ValueError(
                    f"tensor {split.tensor} x pipeline {split.pipeline} are {wanted} GPUs; "
                    f"{split.nodes} pods with `resources.gpu: {self.resources.gpu}` have {there}"
                )
        if self.engine != "vllm" and (self.scaling is not None or split.nodes > 1):
            raise ValueError(
                f"engine {self.engine} has controllers of its own: no `scaling`, and one node a replica"
            )
        if self.resources.gpu_resource == "gpu.shared" and self.gpu_memory_utilization is None:
            raise ValueError("time slices share a GPU's memory: `gpu_memory_utilization` is needed")
        if self.scaling is not None and not self.scaling.min <= self.replicas <= self.scaling.max:
            raise ValueError(
                f"`replicas` is {self.replicas}, not within `scaling`'s {self.scaling.min} to {self.scaling.max}"
            )
        return self
