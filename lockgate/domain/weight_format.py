"""In which form a model's weights already are, told from its config files and file names.

Sources: `quantization_config` as compressed-tensors, GPTQModel/AutoGPTQ, AutoAWQ and transformers write it into config.json
(older AutoGPTQ: `quantize_config.json`, older AutoAWQ: `quant_config.json`); GGUF by its file ending.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

from lockgate.domain.base import Frozen
from lockgate.domain.digests import read_json
from lockgate.domain.recipes import scheme_name

CONFIG_FILES = ("config.json", "quantize_config.json", "quant_config.json")
"""What `recognise` reads, all small."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_LEGACY = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_GPTQ = ("gptq", "gptq_marlin", "gptqmodel", "auto_gptq")
_AWQ = ("awq", "awq_marlin", "auto_awq")
_FP8 = ("fp8", "fbgemm_fp8")


class WeightKind(StrEnum):
    PLAIN = "plain"
    COMPRESSED_TENSORS = "compressed-tensors"
    GPTQ = "gptq"
    AWQ = "awq"
    GGUF = "gguf"
    OTHER = "other"
    """Quantized by a method that is not looked into any further."""


class WeightFormat(Frozen):
    """The form of a model's weights."""

    kind: WeightKind
    method: str | None = None
    """`quant_method` as the model states it; none for plain weights."""
    schemes: tuple[str, ...] = ()
    """Names of the schemes in it, as far as they could be told."""
    detail: str = ""
    """For people: `int4, groups of 128`."""

    @property
    def quantized(self) -> bool:
        return self.kind is not WeightKind.PLAIN

    def __str__(self) -> str:
        name = self.method if self.kind is WeightKind.OTHER and self.method else self.kind.value
        return f"{name} ({self.detail})" if self.detail else name


PLAIN = WeightFormat(kind=WeightKind.PLAIN)


def recognise(configs: Mapping[str, bytes], files: Collection[str]) -> WeightFormat:
    """The form of the weights of a model with these files, of which `configs` holds those of `CONFIG_FILES`.

    Claims of the model are taken at their word here: what serves them finds out. A model that claims nothing and has weights in
    a usual format is plain. Raises `ValueError` for a config file that is no JSON object.
    """
    documents = {}
    for name, content in configs.items():
        try:
            documents[name] = read_json(content)
        except ValueError as error:
            raise ValueError(f"{name} is not JSON: {error}") from error
        if not isinstance(documents[name], dict):
            raise ValueError(f"{name} holds no JSON object")
    stated = _stated(documents)
    if stated is not None:
        return _quantized(*stated)
    if any(name.endswith(".gguf") for name in files) and not any(
        name.endswith(_WEIGHTS) for name in files
    ):
        return WeightFormat(kind=WeightKind.GGUF, method="gguf", detail="a GGUF file")
    return PLAIN


def _stated(
    documents: Mapping[str, Mapping[str, Any]],
) -> tuple[str, Mapping[str, Any]] | None:
    config = documents.get("config.json", {})
    places = [config, *(config.get(key) for key in ("text_config", "llm_config"))]
    for place in places:
        if not isinstance(place, Mapping):
            continue
        # compressed-tensors wrote `compression_config` before transformers knew it.
        for key in ("quantization_config", "compression_config"):
            found = place.get(key)
            if isinstance(found, Mapping) and found:
                default = "compressed-tensors" if key == "compression_config" else "unknown"
                return str(found.get("quant_method") or default).lower(), found
            if found:
                return "unknown", {}
    for name, method in _LEGACY.items():
        document = documents.get(name)
        if document and ("bits" in document or "w_bit" in document):
            return str(document.get("quant_method") or method).lower(), document
    return None


def _quantized(method: str, config: Mapping[str, Any]) -> WeightFormat:
    if method.replace("_", "-") == "compressed-tensors":
        return _compressed_tensors(method, config)
    if method in _GPTQ:
        return _weight_only(
            WeightKind.GPTQ, method, config, symmetric=config.get("sym") is not False
        )
    if method in _AWQ:
        symmetric = config.get("zero_point") is False
        return _weight_only(WeightKind.AWQ, method, config, symmetric=symmetric)
    if method in _FP8:
        schemes = (scheme_name(8, 8, "float", symmetric=True),)
        return WeightFormat(kind=WeightKind.OTHER, method=method, schemes=schemes)
    return WeightFormat(kind=WeightKind.OTHER, method=method)


def _weight_only(
    kind: WeightKind, method: str, config: Mapping[str, Any], *, symmetric: bool
) -> WeightFormat:
    bits = _whole(config.get("bits", config.get("w_bit")))
    group = _whole(config.get("group_size", config.get("q_group_size")))
    schemes = () if bits is None else (scheme_name(bits, 16, "int", symmetric=symmetric),)
    parts = [f"int{bits}"] if bits is not None else []
    if group is not None:
        parts.append(f"groups of {group}" if group > 0 else "per channel")
    return WeightFormat(kind=kind, method=method, schemes=schemes, detail=", ".join(parts))


def _compressed_tensors(method: str, config: Mapping[str, Any]) -> WeightFormat:
    groups = config.get("config_groups")
    schemes, details = [], []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
            continue
        weights, inputs = group["weights"], group.get("input_activations")
        bits = _whole(weights.get("num_bits"))
        kind = weights.get("type", "int")
        if bits is None or kind not in ("int", "float"):
            continue
        activations = _whole(inputs.get("num_bits")) if isinstance(inputs, Mapping) else 16
        symmetric = weights.get("symmetric") is not False
        schemes.append(scheme_name(bits, activations or 16, kind, symmetric=symmetric))
        size = _whole(weights.get("group_size"))
        details.append(
            f"{kind}{bits} weights"
            + (f", groups of {size}" if size is not None and size > 0 else "")
            + (f", {kind}{activations} activations" if activations not in (None, 16) else "")
        )
    return WeightFormat(
        kind=WeightKind.COMPRESSED_TENSORS, method=method.replace("_", "-"),
        schemes=tuple(dict.fromkeys(schemes)), detail="; ".join(dict.fromkeys(details)),
    )  # fmt: skip


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
