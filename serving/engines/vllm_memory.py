"""What a spec tells vLLM that decides on memory: by typed keys, by arguments, by its environment."""

from __future__ import annotations

from collections.abc import Sequence

from lockgate.domain.sizing import Demands
from lockgate.domain.sizing.memory import UTILIZATION
from lockgate.domain.spec import Parallel, ServingSpec
from lockgate.errors import UsageError

_KV_BYTES = {"auto": 2.0, "bfloat16": 2.0, "float16": 2.0}


def told(serving: ServingSpec, *, request_tokens: int | None = None) -> Demands:
    """`UsageError` for an argument whose value is no number."""
    args = serving.args
    kv_type = _option(args, "--kv-cache-dtype") or "auto"
    utilization = serving.gpu_memory_utilization
    if utilization is None:
        utilization = _number(args, "--gpu-memory-utilization") or UTILIZATION
    batched = _number(args, "--max-num-batched-tokens")
    return Demands(
        max_model_len=serving.max_model_len,
        max_num_seqs=serving.max_num_seqs,
        batched_tokens=int(batched) if batched else None,
        utilization=utilization,
        kv_bytes=_KV_BYTES.get(kv_type, 1.0 if kv_type.startswith("fp8") else 2.0),
        eager="--enforce-eager" in args,
        request_tokens=request_tokens,
    )


def split(serving: ServingSpec) -> Parallel:
    """How the engine will split the replica. vLLM takes one GPU unless it is told more, whatever the pod has."""
    if serving.parallel is not None:
        return serving.parallel
    tensor = _number(serving.args, "--tensor-parallel-size", "-tp") or 1
    pipeline = _number(serving.args, "--pipeline-parallel-size", "-pp") or 1
    return Parallel(tensor=int(tensor), pipeline=int(pipeline))


def cpu_cache_bytes(serving: ServingSpec) -> int | None:
    """The KV cache on a CPU; none where vLLM decides by the machine's memory."""
    text = serving.env.get("VLLM_CPU_KVCACHE_SPACE")
    try:
        return int(float(text) * 2**30) if text else None
    except ValueError as error:
        raise UsageError(f"serving.env: VLLM_CPU_KVCACHE_SPACE is {text!r}, no number") from error


def served_bytes(serving: ServingSpec) -> int:
    """Of one number of weights that are not quantized: vLLM makes 16 bits of 32 unless it is told otherwise."""
    return 4 if serving.dtype in ("float32", "float") else 2


def _option(args: Sequence[str], *names: str) -> str | None:
    found = None
    for place, argument in enumerate(args):
        flag, joined, value = argument.partition("=")
        if flag.replace("_", "-") in names:
            found = value if joined else (args[place + 1] if place + 1 < len(args) else None)
    return found


def _number(args: Sequence[str], *names: str) -> float | None:
    text = _option(args, *names)
    try:
        return float(text) if text is not None else None
    except ValueError as error:
        raise UsageError(f"serving.args: {names[0]} is {text!r}, no number") from error
