"""Which weights can be served where: what the installed engine answered, else what is published about it.

The engine's own answer (the kernel that it would pick on this machine) is believed before any table. The table serves
hardware that is not here and machines without a serving environment. "Can load" is not "can serve": kernels that are far
slower than unquantized weights are known by name, and weights that end up there are refused.

Sources of the rows, each named in the row:
[1] vLLM documentation, "Quantization / Supported Hardware" (docs/features/quantization/README.md, v0.14).
[2] vLLM documentation v0.32, FP8 W8A8: compute capability >= 8.9; from 7.5 on weight-only through Marlin.
[3] vLLM documentation, INT8 W8A8: compute capability 7.5 to below 10.0; Blackwell is not supported.
[4] vLLM 0.32.0 source: `get_min_capability` of the compressed-tensors schemes, `get_min_capability` and `can_implement` of the
    mixed-precision kernels.
[5] measured with vLLM 0.32.0 on a CPU with AVX-512 without AMX: docs/quantization.md.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from lockgate.domain.base import Frozen
from lockgate.domain.spec import Hardware
from lockgate.domain.weight_format import WeightFormat, WeightKind

SCHEMES = (
    "w8a8-int", "w4a16-int", "w4a16-int-asymmetric", "w8a16-int", "w8a16-int-asymmetric", "w8a8-float",
)  # fmt: skip
"""What an engine is asked about: the recipes' schemes and those of the usual quantized sources."""


class SchemeAnswer(Frozen):
    """What an engine does with weights of one scheme on the machine where it was asked."""

    scheme: str
    kernel: str | None
    """The kernel that it would pick; none where it has none."""
    reason: str = ""
    """Why there is none, in the engine's words."""


class EngineSupport(Frozen):
    """What an installed engine says of itself."""

    engine: str
    version: str
    hardware: Hardware
    """Where it was asked."""
    methods: tuple[str, ...]
    """Values of `quant_method` that it takes there."""
    schemes: tuple[SchemeAnswer, ...]


class Served(StrEnum):
    WELL = "well"
    TOO_SLOW = "too slow"
    NOT = "not"
    UNKNOWN = "unknown"


class Servability(Frozen):
    """Whether weights can be served, why, and who says so."""

    served: Served
    reason: str
    source: str

    @property
    def refused(self) -> bool:
        """Nothing is spent on weights that cannot be served, or not usefully."""
        return self.served in (Served.NOT, Served.TOO_SLOW)


class SlowKernel(Frozen):
    device: Literal["cpu", "cuda", "rocm", "xpu"]
    kernel: str
    reason: str
    source: str


_TORCH_FP8 = "on a CPU it multiplies through torch._scaled_mm without vector instructions"
SLOW_KERNELS = (
    SlowKernel(
        device="cpu", kernel="ChannelWiseTorchFP8ScaledMMLinearKernel", source="[5]",
        reason=f"{_TORCH_FP8}: 1.7 tokens/s where bf16 gives 35 (SmolLM2-135M, 2 cores)",
    ),
    SlowKernel(
        device="cpu", kernel="PerTensorTorchFP8ScaledMMLinearKernel", source="[5]",
        reason=f"{_TORCH_FP8}, as the channel-wise one does at 1.7 tokens/s",
    ),
)  # fmt: skip


class Row(Frozen):
    """One published fact: weights of `scheme` on `device`, for compute capabilities from `least` to below `below`."""

    scheme: str
    device: Literal["cpu", "cuda", "rocm", "xpu"]
    served: Served
    reason: str
    source: str
    least: float = 0.0
    below: float = float("1e9")


_WEIGHT_ONLY = ("w4a16-int", "w4a16-int-asymmetric", "w8a16-int", "w8a16-int-asymmetric")
MATRIX: tuple[Row, ...] = (
    Row(scheme="w8a8-int", device="cpu", served=Served.WELL, reason="oneDNN int8 kernel", source="[1] [5]"),
    Row(scheme="w8a8-int", device="cuda", least=7.5, below=10.0, served=Served.WELL,
        reason="CUTLASS int8 kernel", source="[1] [3]"),
    Row(scheme="w8a8-int", device="cuda", below=7.5, served=Served.NOT,
        reason="int8 needs compute capability 7.5 (Turing)", source="[3] [4]"),
    Row(scheme="w8a8-int", device="cuda", least=10.0, served=Served.NOT,
        reason="int8 is not supported on Blackwell (10.0 and up): use fp8-dynamic", source="[3]"),
    Row(scheme="w8a8-int", device="rocm", served=Served.NOT, reason="no int8 on AMD GPUs", source="[1]"),
    Row(scheme="w8a8-int", device="xpu", served=Served.NOT, reason="no int8 on Intel GPUs", source="[1]"),
    Row(scheme="w8a8-float", device="cuda", least=8.9, served=Served.WELL, reason="fp8 tensor cores", source="[1] [2]"),
    Row(scheme="w8a8-float", device="cuda", least=7.5, below=8.9, served=Served.WELL,
        reason="fp8 as weight-only through Marlin: saves memory, no fp8 arithmetic", source="[2]"),
    Row(scheme="w8a8-float", device="cuda", below=7.5, served=Served.NOT,
        reason="fp8 needs compute capability 7.5", source="[2] [4]"),
    Row(scheme="w8a8-float", device="rocm", served=Served.WELL, reason="fp8 on MI300 and newer", source="[1] [2]"),
    Row(scheme="w8a8-float", device="xpu", served=Served.NOT, reason="no fp8 W8A8 on Intel GPUs", source="[1]"),
    Row(scheme="w8a8-float", device="cpu", served=Served.TOO_SLOW,
        reason="CPUs without AMX-FP8 fall back to torch: 1.7 tokens/s where bf16 gives 35", source="[1] [5]"),
    *(
        row
        for scheme in _WEIGHT_ONLY
        for row in (
            Row(scheme=scheme, device="cuda", least=7.5, served=Served.WELL,
                reason="Marlin or Machete kernel", source="[1] [4]"),
            Row(scheme=scheme, device="cuda", below=7.5, served=Served.NOT,
                reason="weight-only integers need compute capability 7.5 in compressed-tensors", source="[4]"),
            Row(scheme=scheme, device="rocm", served=Served.NOT, reason="no AWQ or GPTQ kernels on AMD GPUs", source="[1]"),
        )
    ),
    *(
        row
        for scheme in ("w4a16-int", "w4a16-int-asymmetric")
        for row in (
            Row(scheme=scheme, device="cpu", served=Served.WELL, reason="CPU WNA16 kernel", source="[1] [4]"),
            Row(scheme=scheme, device="xpu", served=Served.WELL, reason="XPU WNA16 kernel", source="[1]"),
        )
    ),
    *(
        Row(scheme=scheme, device="cpu", served=Served.NOT,
            reason="the CPU kernel for weight-only integers takes 4 bits only", source="[4]")
        for scheme in ("w8a16-int", "w8a16-int-asymmetric")
    ),
)  # fmt: skip


def recipe_support(
    scheme: str, support: EngineSupport | None, hardware: Hardware | None
) -> Servability:
    """Whether weights of `scheme` (compressed-tensors, as every recipe writes them) can be served.

    `hardware` is what the spec declares, none for the machine where the engine was asked. Without an engine's answer that fits
    and without a row there is no knowledge: `unknown`.
    """
    return _support(scheme, "compressed-tensors", support, hardware)


def source_support(
    found: WeightFormat, support: EngineSupport | None, hardware: Hardware | None
) -> Servability:
    """Whether a source's weights can be served as they are. The worst of its schemes counts."""
    if found.kind is WeightKind.PLAIN:
        return Servability(served=Served.WELL, reason="not quantized", source="the source")
    method = found.method or found.kind.value
    taken = _method(method, support, hardware)
    if taken is not None:
        return taken
    answers = [_support(scheme, method, support, hardware) for scheme in found.schemes]
    if not answers:
        return Servability(
            served=Served.UNKNOWN, source="the source",
            reason=f"its schemes are not known here ({found}): the engine will tell when it loads them",
        )  # fmt: skip
    worst = (Served.NOT, Served.TOO_SLOW, Served.UNKNOWN, Served.WELL)
    return min(answers, key=lambda answer: worst.index(answer.served))


def _support(
    scheme: str, method: str, support: EngineSupport | None, hardware: Hardware | None
) -> Servability:
    refused = _method(method, support, hardware)
    if refused is not None:
        return refused
    if support is not None and _asked_there(support, hardware):
        for answer in support.schemes:
            if answer.scheme == scheme:
                return _judged(answer, support)
    where = hardware or (support.hardware if support is not None else None)
    return _published(scheme, where)


def _method(
    method: str, support: EngineSupport | None, hardware: Hardware | None
) -> Servability | None:
    """A refusal of the whole method. GGUF was in vLLM once, so an engine that was not asked cannot vouch for it."""
    if support is not None and _asked_there(support, hardware):
        if method in support.methods:
            return None
        return Servability(
            served=Served.NOT, source=_said(support),
            reason=f"{support.engine} {support.version} does not take {method} weights on this machine",
        )  # fmt: skip
    if method == WeightKind.GGUF:
        return Servability(
            served=Served.NOT, source="vLLM 0.32.0 source, QUANTIZATION_METHODS",
            reason="vLLM 0.32 does not serve GGUF files",
        )  # fmt: skip
    return None


def _judged(answer: SchemeAnswer, support: EngineSupport) -> Servability:
    if answer.kernel is None:
        return Servability(
            served=Served.NOT, source=_said(support),
            reason=f"no kernel for {answer.scheme}: {answer.reason}",
        )  # fmt: skip
    for slow in SLOW_KERNELS:
        if (slow.device, slow.kernel) == (support.hardware.device, answer.kernel):
            return Servability(
                served=Served.TOO_SLOW, source=f"{_said(support)} {slow.source}",
                reason=f"{answer.kernel} is a fallback: {slow.reason}",
            )  # fmt: skip
    return Servability(served=Served.WELL, reason=answer.kernel, source=_said(support))


def _published(scheme: str, hardware: Hardware | None) -> Servability:
    if hardware is None:
        return Servability(
            served=Served.UNKNOWN, source="", reason="the hardware is not known: set `hardware` in the spec"
        )  # fmt: skip
    rows = [row for row in MATRIX if (row.scheme, row.device) == (scheme, hardware.device)]
    if hardware.device == "cuda":
        if hardware.compute_capability is None:
            return Servability(
                served=Served.UNKNOWN, source="",
                reason="it depends on the GPU: set `hardware.compute_capability` in the spec",
            )  # fmt: skip
        capability = float(hardware.compute_capability)
        rows = [row for row in rows if row.least <= capability < row.below]
    for row in rows:
        return Servability(served=row.served, reason=row.reason, source=row.source)
    return Servability(
        served=Served.UNKNOWN, source="", reason=f"nothing is published on {scheme} on {hardware.device}"
    )  # fmt: skip


def _asked_there(support: EngineSupport, hardware: Hardware | None) -> bool:
    if hardware is None or hardware == support.hardware:
        return True
    return (
        hardware.device == support.hardware.device
        and hardware.compute_capability is None
        and hardware.device != "cuda"
    )


def _said(support: EngineSupport) -> str:
    return f"{support.engine} {support.version}, asked"
