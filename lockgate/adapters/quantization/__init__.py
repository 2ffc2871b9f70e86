"""Quantization by llm-compressor and conversion of GGUF files, each in a process of the quantization environment."""

from lockgate.adapters.quantization.calibration import read_calibration
from lockgate.adapters.quantization.convert import ModelCard, convert_gguf
from lockgate.adapters.quantization.quantize import quantize, require_plain, weight_format

__all__ = [
    "ModelCard",
    "convert_gguf",
    "quantize",
    "read_calibration",
    "require_plain",
    "weight_format",
]
