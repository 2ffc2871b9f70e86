"""Does a release's model fit on the hardware that its spec declares? Said line by line, before anything is downloaded."""

from __future__ import annotations

import yaml

from lockgate.adapters.sources import Peek
from lockgate.domain.base import Frozen
from lockgate.domain.digests import read_json
from lockgate.domain.recipes import definition
from lockgate.domain.sizing import (
    ModelShape,
    Placement,
    Sizing,
    Weights,
    accelerator,
    choose,
    examine,
    read_shape,
    weights_of,
)
from lockgate.domain.sizing.accelerators import slice_of
from lockgate.domain.sizing.memory import GIB, UTILIZATION, kv_bytes_a_token
from lockgate.domain.spec import Hardware, Recipe, ReleaseSpec
from lockgate.domain.weight_format import WeightFormat
from lockgate.errors import UsageError
from serving.engines import vllm_memory
from serving.engines.registry import engine
from serving.engines.vllm import VllmEngine


class Fit(Frozen):
    """The arithmetic of one spec."""

    lines: tuple[str, ...]
    refusal: str | None = None
    """Why it cannot run; none where it can, or where nobody said on what."""
    hint: str | None = None


def fit(spec: ReleaseSpec, seen: Peek | None, found: WeightFormat | None) -> Fit:
    """What serving takes and whether the declared hardware has it. Without the figures it says so and refuses nothing."""
    if not isinstance(engine(spec.serving.engine), VllmEngine):
        return Fit(lines=(f"memory is not computed for engine {spec.serving.engine}",))
    if seen is None or "config.json" not in seen.contents:
        return Fit(
            lines=("memory is not computed: the source shows no config.json before its download",)
        )
    try:
        shape = read_shape(read_json(seen.contents["config.json"]))
        weights = _weights(spec, shape, seen, found)
    except ValueError as error:
        return Fit(lines=(f"memory is not computed: {error}",))
    hardware = spec.hardware
    try:
        if hardware is not None and hardware.accelerator is not None:
            return _on_accelerators(spec, shape, weights, hardware)
    except ValueError as error:
        return Fit(lines=(), refusal=str(error), hint="docs/sizing.md lists what is known")
    if spec.serving.resources.gpu or (hardware is not None and hardware.device != "cpu"):
        a_token = shape.layers * kv_bytes_a_token(shape)
        return Fit(
            lines=(
                f"{_gib(weights.total)} weights ({weights.basis}), {a_token:.0f} bytes of KV cache a token; "
                "whether that fits is not checked: hardware.accelerator is not declared",
            )
        )
    return _on_cpu(spec, shape, weights)


def require_fit(found: Fit | None) -> None:
    """Raises `UsageError` with the numbers for what cannot run."""
    if found is not None and found.refusal is not None:
        raise UsageError("\n".join([found.refusal, *found.lines]), hint=found.hint)


def _weights(
    spec: ReleaseSpec, shape: ModelShape, seen: Peek, found: WeightFormat | None
) -> Weights:
    served = vllm_memory.served_bytes(spec.serving)
    if spec.quantization is not Recipe.NONE:
        recipe = definition(spec.quantization)
        return weights_of(
            shape, stored_bytes=seen.weight_bytes, served_bytes=served, bits=recipe.scheme.weights.bits,
            group=max(recipe.group_sizes, default=None),
        )  # fmt: skip
    quantized = found is not None and found.quantized
    return weights_of(
        shape, stored_bytes=seen.weight_bytes, quantized=quantized, served_bytes=served
    )


def _on_accelerators(
    spec: ReleaseSpec, shape: ModelShape, weights: Weights, hardware: Hardware
) -> Fit:
    serving = spec.serving
    demand = spec.benchmark.demand
    mean = int(demand.prompt_tokens + demand.output_tokens) if demand is not None else None
    demands = vllm_memory.told(serving, request_tokens=mean)
    shared = serving.resources.gpu_resource == "gpu.shared"
    if shared and demands.utilization * hardware.time_slices > 1:
        return Fit(
            lines=(),
            refusal=f"{hardware.time_slices} replicas share a GPU and each may take {demands.utilization:g} of its memory",
            hint=f"gpu_memory_utilization: {UTILIZATION / hardware.time_slices:.3f}",
        )
    # What an engine in a time slice is told is a share of the whole device.
    usual = demands.model_copy(update={"utilization": UTILIZATION}) if shared else demands
    chosen = choose(shape, weights, hardware, usual)
    if not serving.resources.gpu:
        if not chosen.fits:
            return Fit(lines=chosen.lines, refusal=_nowhere(hardware), hint=_remedies(chosen))
        return Fit(
            lines=chosen.lines,
            refusal=f"serving.resources.gpu is 0, the model fits on {chosen.placement}",
            hint=f"put into the spec:\n{_as_spec(chosen)}",
        )
    # A length that nobody named is the model's own for vLLM, which refuses to start where that has no room.
    whole = demands.model_copy(update={"max_model_len": demands.max_model_len or shape.context})
    declared = examine(shape, weights, _declared(spec, hardware), whole)
    idle = serving.resources.gpu * (serving.parallel.nodes if serving.parallel else 1)
    if declared.placement.devices != idle and declared.placement.time_slices == 1:
        return Fit(
            lines=declared.lines,
            refusal=f"vLLM is told to use {declared.placement.devices} GPUs, the pods have {idle}",
            hint="set serving.parallel",
        )
    if declared.fits:
        return Fit(lines=declared.lines)
    if chosen.fits:
        return Fit(
            lines=declared.lines,
            refusal=f"the model does not fit on {declared.placement}",
            hint=f"it fits on {chosen.placement}:\n{_as_spec(chosen)}",
        )
    return Fit(lines=chosen.lines, refusal=_nowhere(hardware), hint=_remedies(chosen))


def _declared(spec: ReleaseSpec, hardware: Hardware) -> Placement:
    """What the spec's own resources are. Raises `ValueError` for a slice that the hardware does not have."""
    resources = spec.serving.resources
    device = accelerator(str(hardware.accelerator), hardware.memory_gib)
    split = vllm_memory.split(spec.serving)
    if resources.gpu_resource == "gpu.shared":
        # The share is what the engine is told to take of the whole: nothing else keeps it apart.
        return Placement(device=device, time_slices=max(2, hardware.time_slices))
    if resources.gpu_resource is not None:
        device = slice_of(device, resources.gpu_resource.removeprefix("mig-"))
    return Placement(device=device, tensor=split.tensor, pipeline=split.pipeline)


def _on_cpu(spec: ReleaseSpec, shape: ModelShape, weights: Weights) -> Fit:
    memory = _bytes(spec.serving.resources.memory)
    cache = vllm_memory.cpu_cache_bytes(spec.serving)
    a_token = shape.layers * kv_bytes_a_token(shape)
    lines = [f"{_gib(weights.total)} weights ({weights.basis})"]
    if cache is None:
        lines.append(f"{a_token:.0f} bytes of KV cache a token; its size is vLLM's choice")
    else:
        lines.append(f"{_gib(cache)} KV cache: {cache / a_token:.0f} tokens of {a_token:.0f} bytes")
        length = spec.serving.max_model_len or shape.context
        if cache < a_token * length:
            return Fit(
                lines=tuple(lines),
                refusal=f"one sequence of {length} tokens takes {_gib(a_token * length)} of KV cache",
                hint=f"raise VLLM_CPU_KVCACHE_SPACE, or set max_model_len to {int(cache / a_token)} or less",
            )
    least = weights.total + (cache or 0)
    if least > memory:
        return Fit(
            lines=tuple(lines),
            refusal=f"weights and KV cache take {_gib(least)}, serving.resources.memory is {_gib(memory)}",
            hint=f"ask for {-(-least // GIB) + 2}Gi or more",
        )
    return Fit(lines=tuple(lines))


def _nowhere(hardware: Hardware) -> str:
    nodes = f"{hardware.nodes} nodes of " if hardware.nodes > 1 else ""
    return f"the model does not fit on {nodes}{hardware.gpus_per_node} {hardware.accelerator}"


def _remedies(sizing: Sizing) -> str:
    if not sizing.remedies:
        return "nothing that is known here makes it fit"
    return "any of these makes it fit:\n" + "\n".join(f"- {remedy}" for remedy in sizing.remedies)


def _as_spec(sizing: Sizing) -> str:
    return str(yaml.safe_dump({"serving": sizing.serving()}, sort_keys=False)).rstrip()


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 2**20, "Gi": 2**30}[quantity[-2:]]


def _gib(value: float) -> str:
    return f"{value / GIB:.2f} GiB"
