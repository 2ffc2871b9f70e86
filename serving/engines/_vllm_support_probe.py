"""Runs inside the serving environment: which quantized weights does this vLLM serve on this machine, with which kernel?

Standard input: JSON list of scheme names (`lockgate.domain.serving_support.SCHEMES`). Standard output: one JSON object. It
asks vLLM's own choosers, the functions that pick a layer's kernel while a model is loaded, and so knows no table. Neither
Lockgate nor its dependencies are installed here.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# An ordinary layer. Kernels refuse odd shapes; whether a model has any is found out when it is loaded.
INPUTS, OUTPUTS, GROUP = 4096, 4096, 64


def choose(scheme: str) -> str:
    """Name of the kernel; vLLM's exception says why there is none."""
    import torch
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
        compressed_tensors_wNa16 as weight_only,
    )
    from vllm.model_executor.layers.quantization.utils import quant_utils

    if scheme == "w8a8-int":
        int8 = linear.Int8ScaledMMLinearLayerConfig(
            is_static_input_scheme=False, is_channelwise=True, input_symmetric=True
        )
        kernel = linear.choose_scaled_mm_linear_kernel(
            int8, linear._POSSIBLE_INT8_KERNELS, quantization="int8_w8a8"
        )
        return str(kernel.__name__)
    if scheme == "w8a8-float":
        fp8 = linear.FP8ScaledMMLinearLayerConfig(
            weight_quant_key=quant_utils.kFp8StaticChannelSym,
            activation_quant_key=quant_utils.kFp8DynamicTokenSym,
            weight_shape=(OUTPUTS, INPUTS),
            input_dtype=torch.bfloat16,
            out_dtype=torch.bfloat16,
        )
        kernel = linear.choose_scaled_mm_linear_kernel(
            fp8, linear._POSSIBLE_FP8_KERNELS, quantization="fp8_w8a8"
        )
        return str(kernel.__name__)
    bits = int(scheme[1 : scheme.index("a")])
    asymmetric = scheme.endswith("-asymmetric")
    types = (
        weight_only.WNA16_ZP_SUPPORTED_TYPES_MAP
        if asymmetric
        else weight_only.WNA16_SUPPORTED_TYPES_MAP
    )
    mixed = linear.MPLinearLayerConfig(
        full_weight_shape=(INPUTS, OUTPUTS),
        partition_weight_shape=(INPUTS, OUTPUTS),
        weight_type=types[bits],
        act_type=torch.bfloat16,
        group_size=GROUP,
        zero_points=asymmetric,
    )
    return str(linear.choose_mp_linear_kernel(mixed).__name__)


def answer(scheme: str) -> dict[str, Any]:
    try:
        return {"scheme": scheme, "kernel": choose(scheme), "reason": ""}
    except (ValueError, KeyError) as error:
        # vLLM says "no kernel" by ValueError; a number of bits that it has no type for is a KeyError.
        return {"scheme": scheme, "kernel": None, "reason": " ".join(str(error).split())}


def main() -> None:
    """Ask and print."""
    schemes = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # vLLM logs to standard output.
    os.dup2(2, 1)
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.platforms import current_platform
    from vllm.version import __version__

    kinds = ("cpu", "cuda", "rocm", "xpu")
    device = next(kind for kind in kinds if getattr(current_platform, f"is_{kind}")())
    capability = current_platform.get_device_capability()
    allowed = current_platform.supported_quantization or QUANTIZATION_METHODS
    json.dump(
        {
            "engine": "vllm",
            "version": __version__,
            "hardware": {
                "device": device,
                "compute_capability": f"{capability[0]}.{capability[1]}"
                if device == "cuda" and capability is not None
                else None,
            },
            "methods": sorted(method for method in QUANTIZATION_METHODS if method in allowed),
            "schemes": [answer(scheme) for scheme in schemes],
        },
        out,
    )
    out.flush()


if __name__ == "__main__":
    main()
