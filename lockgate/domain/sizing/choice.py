"""On what a model fits: the smallest share of the hardware that holds it, or the numbers why nothing does and what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lockgate.domain.base import Frozen
from lockgate.domain.sizing.accelerators import MIG, Accelerator, accelerator, slice_of
from lockgate.domain.sizing.memory import GIB, Demands, Footprint, Weights, footprint
from lockgate.domain.sizing.shape import ModelShape
from lockgate.domain.spec import Hardware

LEAST_LENGTH = 8192
"""Where no length is asked for, a device with room for less than this is too small; the model's own context if that is less."""
REQUEST_TOKENS = 2048
"""Mean length of a request where the spec declares no demand."""
_STEP = 1024
"""Lengths are chosen in multiples of this."""


class Placement(Frozen):
    """How one replica lies on the hardware."""

    device: Accelerator
    tensor: int = 1
    """Devices of a pod that share every layer."""
    pipeline: int = 1
    """Stages, one a node."""
    time_slices: int = 1
    """Processes that share one device, of which this is one."""

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        name = self.device.name + (f" MIG {self.device.slice}" if self.device.slice else "")
        if self.time_slices > 1:
            return f"1/{self.time_slices} of a {name} (time slice)"
        if self.pipeline > 1:
            return f"{self.pipeline} nodes of {self.tensor} {name}"
        return f"{self.tensor} {name}"


class Sizing(Frozen):
    """What was found. `footprint` is of the placement that was taken, or of the largest one where nothing fits."""

    fits: bool
    placement: Placement
    footprint: Footprint
    weights: Weights
    max_num_seqs: int
    utilization: float
    lines: tuple[str, ...]
    """The arithmetic, line by line."""
    remedies: tuple[str, ...] = ()
    """What would make it fit, each one computed."""

    @property
    def cpu(self) -> int:
        """Cores to ask for: the server, the engine's loop, one worker a device."""
        return 2 + 2 * self.placement.tensor

    @property
    def memory_gib(self) -> int:
        """Host memory to ask for (estimate): the server and each worker with its pinned buffers; the pages of the weights,
        read through the page cache, can be given back."""
        return 8 + 6 * self.placement.tensor

    def serving(self) -> dict[str, object]:
        """The keys of a spec's `serving` that say this."""
        resources: dict[str, object] = {
            "cpu": self.cpu, "memory": f"{self.memory_gib}Gi", "gpu": self.placement.tensor,
        }  # fmt: skip
        if self.placement.device.slice:
            resources["gpu_resource"] = f"mig-{self.placement.device.slice}"
        found: dict[str, object] = {
            "max_model_len": self.footprint.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "resources": resources,
        }
        if self.placement.time_slices > 1:
            resources["gpu_resource"] = "gpu.shared"
            found["gpu_memory_utilization"] = round(
                self.utilization / self.placement.time_slices, 3
            )
        if self.placement.devices > 1:
            found["parallel"] = {
                "tensor": self.placement.tensor, "pipeline": self.placement.pipeline,
                "nodes": self.placement.pipeline,
            }  # fmt: skip
        return found


def examine(shape: ModelShape, weights: Weights, placement: Placement, demands: Demands) -> Sizing:
    """The arithmetic of one placement, whether or not it fits."""
    problem = _indivisible(shape, placement)
    length = _length(shape, weights, placement, demands)
    found = _footprint(shape, weights, placement, demands, length)
    fits = problem is None and found.fits and length >= _least(shape, demands)
    sequences = _sequences(found, placement, demands)
    lines = tuple(_lines(shape, weights, placement, demands, found, sequences, problem))
    return Sizing(
        fits=fits, placement=placement, footprint=found, weights=weights, max_num_seqs=sequences,
        utilization=demands.utilization, lines=lines,
    )  # fmt: skip


def choose(shape: ModelShape, weights: Weights, hardware: Hardware, demands: Demands) -> Sizing:
    """The first of the hardware's placements, from the smallest, that fits; else the largest, with remedies.

    `ValueError` for an accelerator or a slice that is not known.
    """
    tried: list[str] = []
    last: Sizing | None = None
    for placement in placements(hardware):
        if _indivisible(shape, placement):
            continue
        last = examine(shape, weights, placement, demands)
        if last.fits:
            return last.model_copy(update={"lines": (*tried, *last.lines)})
        tried.append(f"{placement}: {_shortage(last.footprint)}")
    if last is None:
        raise ValueError(
            f"no number of {hardware.accelerator} in a node divides the model's {shape.heads} heads"
        )
    remedies = tuple(_remedies(shape, weights, hardware, demands, last))
    return last.model_copy(update={"lines": (*tried, *last.lines), "remedies": remedies})


def placements(hardware: Hardware) -> Iterator[Placement]:
    """All that a replica may be given, from the smallest: slices, devices of one node by powers of two, nodes."""
    if hardware.accelerator is None:
        raise ValueError("hardware.accelerator says what a replica may be given")
    whole = accelerator(hardware.accelerator, hardware.memory_gib)
    slices = [slice_of(whole, profile) for profile in hardware.mig]
    for device in sorted(slices, key=lambda item: item.memory_gib):
        yield Placement(device=device)
    if hardware.time_slices > 1:
        part = whole.model_copy(update={"memory_gib": whole.memory_gib / hardware.time_slices})
        yield Placement(device=part, time_slices=hardware.time_slices)
    count = 1
    while count <= hardware.gpus_per_node:
        yield Placement(device=whole, tensor=count)
        count *= 2
    for nodes in range(2, hardware.nodes + 1):
        yield Placement(device=whole, tensor=hardware.gpus_per_node, pipeline=nodes)


def _indivisible(shape: ModelShape, placement: Placement) -> str | None:
    if shape.heads % placement.tensor:
        return f"{shape.heads} attention heads are not divisible by {placement.tensor}"
    if max(shape.kv_heads, placement.tensor) % min(shape.kv_heads, placement.tensor):
        return f"{shape.kv_heads} KV heads cannot be shared out to {placement.tensor}"
    if placement.pipeline > shape.layers:
        return f"{shape.layers} layers make no {placement.pipeline} stages"
    return None


def _footprint(
    shape: ModelShape, weights: Weights, placement: Placement, demands: Demands, length: int
) -> Footprint:
    return footprint(
        shape, weights, placement.device, demands,
        tensor=placement.tensor, pipeline=placement.pipeline, max_model_len=length,
    )  # fmt: skip


def _least(shape: ModelShape, demands: Demands) -> int:
    return demands.max_model_len or min(shape.context, LEAST_LENGTH)


def _length(shape: ModelShape, weights: Weights, placement: Placement, demands: Demands) -> int:
    """What was asked for, else the model's whole context, cut to what has room."""
    if demands.max_model_len is not None:
        return demands.max_model_len
    return _longest(
        lambda length: _footprint(shape, weights, placement, demands, length).fits, shape.context
    ) or min(shape.context, LEAST_LENGTH)


def _longest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest multiple of a step, at most `limit`, that fits; 0 for none. What fits, fits when it is shorter."""
    if fits(limit):
        return limit
    low, high = 0, limit // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * _STEP) else (low, middle - 1)
    return low * _STEP


def _sequences(found: Footprint, placement: Placement, demands: Demands) -> int:
    """As many as have room at the mean length of a request. A larger batch would only be preempted."""
    if demands.max_num_seqs is not None:
        return demands.max_num_seqs
    mean = min(demands.request_tokens or REQUEST_TOKENS, found.max_model_len)
    return max(1, min(placement.device.sequences, found.kv_tokens // mean))


def _shortage(found: Footprint) -> str:
    if found.kv <= 0:
        return f"{_gib(found.fixed)} without any KV cache, {_gib(found.budget)} to be had"
    return (
        f"{_gib(found.kv)} left for the KV cache, one sequence of {found.max_model_len} tokens takes "
        f"{_gib(found.kv_sequence)}"
    )


def _lines(
    shape: ModelShape,
    weights: Weights,
    placement: Placement,
    demands: Demands,
    found: Footprint,
    sequences: int,
    problem: str | None,
) -> Iterator[str]:
    split = f" / {placement.devices} devices" if placement.devices > 1 else ""
    memory = placement.device.memory_bytes
    yield f"on {placement}, each of:"
    if problem is not None:
        yield f"  {problem}"
    yield f"  {_gib(found.budget)} = {_gib(memory)} x {demands.utilization:g} (gpu-memory-utilization)"
    yield f"- {_gib(found.weights)} weights: {_gib(weights.total)}{split} ({weights.basis})"
    yield f"- {_gib(found.activations)} activations (estimate)"
    if found.graphs:
        yield f"- {_gib(found.graphs)} CUDA graphs (estimate)"
    yield f"- {_gib(found.runtime)} driver{' and collectives' if placement.devices > 1 else ''} (estimate)"
    yield f"= {_gib(found.kv)} for the KV cache"
    yield f"  KV cache: {_kv_formula(shape, placement, demands, found)}"
    yield (
        f"  one sequence of {found.max_model_len} tokens: {_gib(found.kv_sequence)}; room for "
        f"{found.sequences:.1f} of them, {found.kv_tokens} tokens; up to {sequences} sequences in a batch"
    )


def _kv_formula(shape: ModelShape, placement: Placement, demands: Demands, found: Footprint) -> str:
    windows = [window for window in shape.windows if window is not None]
    layers = -(-shape.layers // placement.pipeline)
    if shape.latent is not None:
        each = f"{shape.latent} latent numbers"
    else:
        heads = -(-shape.kv_heads // placement.tensor)
        each = f"2 x {heads} heads x {shape.head_dim}"
    text = f"{layers} layers x {each} x {demands.kv_bytes:g} bytes = {found.kv_token} bytes a token"
    if windows:
        text += f"; {len(windows)} layers of {shape.layers} look back at {windows[0]} tokens only"
    return text


def _remedies(
    shape: ModelShape, weights: Weights, hardware: Hardware, demands: Demands, last: Sizing
) -> Iterator[str]:
    placement = last.placement

    def fits(weights: Weights, placement: Placement, demands: Demands) -> bool:
        return examine(shape, weights, placement, demands).fits

    if demands.max_model_len is not None:
        length = _longest(
            lambda n: _footprint(shape, weights, placement, demands, n).fits, demands.max_model_len
        )
        if length:
            yield f"max_model_len: {length} fits on {placement}"
    if demands.kv_bytes > 1 and fits(
        weights, placement, demands.model_copy(update={"kv_bytes": 1})
    ):
        yield "--kv-cache-dtype fp8 halves the KV cache"
    for recipe, bits, group in (("fp8-dynamic or w8a8", 8, None), ("w4a16", 4, 128)):
        smaller = _at_bits(weights, bits, group)
        if smaller is not None and fits(smaller, placement, demands):
            yield f"quantization {recipe}: {_gib(smaller.total)} of weights"
            break
    whole = accelerator(str(hardware.accelerator), hardware.memory_gib)
    for count in (1, 2, 4, 8):
        wider = Placement(device=whole, tensor=count)
        if count > hardware.gpus_per_node and fits(weights, wider, demands):
            yield f"{count} {whole.name} in one node"
            break
    for nodes in range(max(2, hardware.nodes + 1), 17):
        deeper = Placement(device=whole, tensor=max(1, hardware.gpus_per_node), pipeline=nodes)
        if fits(weights, deeper, demands):
            yield f"{nodes} nodes of {deeper.tensor} {whole.name}"
            break
    if hardware.mig and not MIG.get(whole.name):
        yield "whole devices instead of slices"


def _at_bits(weights: Weights, bits: int, group: int | None) -> Weights | None:
    """16-bit weights as a recipe would make them; None for weights that are quantized already."""
    if "bits" in weights.basis or "files" in weights.basis:
        return None
    layers = int(weights.layers * (bits / 16 + (1 / group if group else 0)))
    return weights.model_copy(update={"layers": layers, "basis": f"{weights.basis}, {bits} bits"})


def _gib(value: float) -> str:
    return f"{value / GIB:.2f} GiB"
