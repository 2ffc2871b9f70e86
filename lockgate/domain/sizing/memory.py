"""What serving a model takes on each accelerator: weights and KV cache exactly, the rest as estimates that err upwards.

Sources: vLLM 0.32 (`v1/worker/gpu_worker.py`: the KV cache gets what `--gpu-memory-utilization` leaves beside weights, the
activations of a profiling run and CUDA graphs; `v1/kv_cache_interface.py`: pages of full and sliding-window layers;
`config/cache.py`: 0.92 by default).
"""

from __future__ import annotations

from lockgate.domain.base import Frozen
from lockgate.domain.sizing.accelerators import Accelerator
from lockgate.domain.sizing.shape import ModelShape

GIB = 2**30
UTILIZATION = 0.92
_CONCURRENT_BATCHES = 2
"""With asynchronous scheduling one batch runs while the next is made up."""
_CONTEXT_BYTES = int(0.6 * GIB)
"""Estimate: CUDA context, kernels and workspaces of one process."""
_COLLECTIVES_BYTES = int(0.9 * GIB)
"""Estimate: NCCL's and the custom all-reduce's buffers where there is more than one device."""
_GRAPH_BYTES_A_LAYER = 16 * 2**20
"""Estimate: CUDA graphs of vLLM's 51 batch sizes."""


class Weights(Frozen):
    """Bytes of the weights as they lie in memory."""

    embedding: int
    head: int
    layers: int
    """Split by tensor parallelism and shared out to the pipeline's stages."""
    basis: str
    """Where the figure comes from."""

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.layers


class Demands(Frozen):
    """What the engine is told, as far as it decides on memory. None leaves it to vLLM or to the choice."""

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    batched_tokens: int | None = None
    utilization: float = UTILIZATION
    kv_bytes: float = 2
    """Of one number in the KV cache: 2 for 16 bits, 1 for fp8."""
    eager: bool = False
    """No CUDA graphs."""
    request_tokens: int | None = None
    """Prompt and answer of a mean request."""


class Footprint(Frozen):
    """One accelerator's memory; every figure in bytes of that one."""

    budget: int
    """What vLLM may take: the device's memory by the utilization."""
    weights: int
    activations: int
    graphs: int
    runtime: int
    """The driver's and the collectives' own."""
    kv_token: int
    """KV cache of one token that no window has passed yet."""
    kv_sequence: int
    """KV cache of one sequence of `max_model_len` tokens."""
    max_model_len: int

    @property
    def fixed(self) -> int:
        return self.weights + self.activations + self.graphs + self.runtime

    @property
    def kv(self) -> int:
        """What is left for the KV cache; negative where not even the rest fits."""
        return self.budget - self.fixed

    @property
    def fits(self) -> bool:
        """vLLM refuses to start where one sequence of full length has no room."""
        return self.kv >= self.kv_sequence

    @property
    def sequences(self) -> float:
        """Sequences of full length that have room at once ("maximum concurrency" in vLLM's log)."""
        return max(0.0, self.kv / self.kv_sequence)

    @property
    def kv_tokens(self) -> int:
        return int(self.sequences * self.max_model_len)


def weights_of(
    shape: ModelShape,
    *,
    stored_bytes: int | None = None,
    quantized: bool = False,
    bits: int | None = None,
    group: int | None = None,
    served_bytes: int = 2,
) -> Weights:
    """Bytes of the weights in memory.

    `stored_bytes`: of the weight files, where they are known. `quantized`: these are as the engine keeps them. `bits` (and
    `group`, numbers that share a 16-bit scale): what a recipe makes of all but embedding and head. `served_bytes`: of a number
    that is not quantized. `ValueError` if neither the files nor the family tell.
    """
    ends = shape.embedding * served_bytes
    head = 0 if shape.tied else ends
    if quantized:
        if stored_bytes is None:
            raise ValueError("the weights are quantized already: only their files tell their size")
        layers = max(0, stored_bytes - ends - head)
        return Weights(embedding=ends, head=head, layers=layers, basis="size of the weight files")
    if shape.parameters is not None:
        linear, other = shape.parameters.linear, shape.parameters.other
        basis = f"{shape.parameters.total / 1e9:.3f} billion parameters"
    elif stored_bytes is not None:
        numbers = stored_bytes // shape.dtype_bytes
        linear, other = numbers - shape.embedding * (1 if shape.tied else 2), 0
        basis = f"{numbers / 1e9:.3f} billion parameters by the size of the weight files"
        if linear <= 0:
            raise ValueError(
                "the weight files are smaller than the vocabulary that config.json states"
            )
    else:
        raise ValueError(
            f"the layers of {shape.family!r} are not known, nor the size of its weight files"
        )
    a_number = served_bytes if bits is None else bits / 8 + (2 / group if group else 0)
    if bits is not None:
        basis += f", {bits} bits in all but embedding and head"
    layers = int(linear * a_number) + other * served_bytes
    return Weights(embedding=ends, head=head, layers=layers, basis=basis)


def footprint(
    shape: ModelShape,
    weights: Weights,
    device: Accelerator,
    demands: Demands,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    max_model_len: int | None = None,
) -> Footprint:
    """Memory of the accelerator that holds most, when the model is split `tensor` ways within each of `pipeline` stages."""
    length = max_model_len or demands.max_model_len or shape.context
    tokens = demands.batched_tokens or device.batched_tokens
    ends = weights.embedding + weights.head if pipeline == 1 else weights.embedding
    held = _stage(shape.layers, pipeline) / shape.layers
    a_token = kv_bytes_a_token(shape, demands.kv_bytes, tensor=tensor)
    windows = [window for window in shape.windows if window is not None]
    full = _stage(shape.layers - len(windows), pipeline)
    sequence = full * a_token * length
    if windows:
        reach = windows[0] - 1 + _CONCURRENT_BATCHES * tokens
        sequence += _stage(len(windows), pipeline) * a_token * min(length, reach)
    return Footprint(
        budget=int(device.memory_bytes * demands.utilization),
        weights=int(ends / tensor + weights.layers * held / tensor),
        activations=_activations(shape, device, demands, tokens, tensor),
        graphs=0 if demands.eager else _stage(shape.layers, pipeline) * _GRAPH_BYTES_A_LAYER,
        runtime=_CONTEXT_BYTES + (_COLLECTIVES_BYTES if tensor * pipeline > 1 else 0),
        kv_token=int(_stage(shape.layers, pipeline) * a_token),
        kv_sequence=int(sequence),
        max_model_len=length,
    )


def kv_bytes_a_token(shape: ModelShape, number: float = 2, *, tensor: int = 1) -> float:
    """KV cache of one token in one layer, on each of `tensor` devices: heads are split, and repeated once they are fewer than
    the devices; a latent vector is repeated on all."""
    if shape.latent is not None:
        return shape.latent * number
    return 2 * -(-shape.kv_heads // tensor) * shape.head_dim * number


def _activations(
    shape: ModelShape, device: Accelerator, demands: Demands, tokens: int, tensor: int
) -> int:
    """Estimate of the profiling run's peak: a full batch through the widest layer, or the sampler over the vocabulary in
    32 bits, whichever is more."""
    through = tokens * 2 * (4 * shape.hidden + 3 * -(-shape.width // tensor))
    rows = demands.max_num_seqs or device.sequences
    sampled = min(rows, tokens) * shape.vocabulary * 4 * 3
    return max(through, sampled)


def _stage(layers: int, pipeline: int) -> int:
    return -(-layers // pipeline)
