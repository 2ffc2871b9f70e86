"""Which weights can be served where: the engine's own answer first, then what is published, and never a guess."""

from __future__ import annotations

import pytest

from lockgate.domain.recipes import definition
from lockgate.domain.serving_support import (
    MATRIX,
    SCHEMES,
    EngineSupport,
    SchemeAnswer,
    Servability,
    Served,
    recipe_support,
    source_support,
)
from lockgate.domain.spec import Hardware, Recipe
from lockgate.domain.weight_format import PLAIN, WeightFormat, WeightKind

CPU = Hardware(device="cpu")
KERNELS = {
    "w8a8-int": "CPUInt8ScaledMMLinearKernel",
    "w4a16-int": "CPUWNA16LinearKernel",
    "w4a16-int-asymmetric": "CPUWNA16LinearKernel",
    "w8a8-float": "ChannelWiseTorchFP8ScaledMMLinearKernel",
    "w8a16-int": None,
    "w8a16-int-asymmetric": None,
}


def asked(**kernels: str | None) -> EngineSupport:
    chosen = {**KERNELS, **{name.replace("_", "-"): value for name, value in kernels.items()}}
    return EngineSupport(
        engine="vllm", version="0.32.0", hardware=CPU, methods=("awq", "compressed-tensors", "gptq"),
        schemes=tuple(SchemeAnswer(scheme=k, kernel=v, reason="" if v else "8 bits") for k, v in chosen.items()),
    )  # fmt: skip


def of(recipe: Recipe, support: EngineSupport | None, hardware: Hardware | None) -> Servability:
    return recipe_support(definition(recipe).scheme.name, support, hardware)


def cuda(capability: str | None) -> Hardware:
    return Hardware(device="cuda", compute_capability=capability)


def test_fp8_that_ends_in_the_fallback_kernel_is_refused_with_what_it_costs() -> None:
    answer = of(Recipe.FP8_DYNAMIC, asked(), None)
    assert answer.served is Served.TOO_SLOW
    assert answer.refused
    assert "1.7 tokens/s" in answer.reason
    assert "vllm 0.32.0" in answer.source


def test_the_same_recipe_passes_where_the_engine_has_a_real_kernel() -> None:
    support = asked(w8a8_float="CPUFP8W8A8ScaledMMLinearKernel")
    assert of(Recipe.FP8_DYNAMIC, support, None).served is Served.WELL


@pytest.mark.parametrize(
    "recipe", [r for r in Recipe if r not in (Recipe.NONE, Recipe.FP8_DYNAMIC)]
)
def test_integer_recipes_are_served_on_a_cpu_asked_or_not(recipe: Recipe) -> None:
    assert of(recipe, asked(), None).served is Served.WELL
    assert of(recipe, asked(), CPU).served is Served.WELL
    assert of(recipe, None, CPU).served is Served.WELL


def test_without_an_engine_to_ask_a_cpu_is_taken_for_one_without_fp8() -> None:
    assert of(Recipe.FP8_DYNAMIC, None, CPU).served is Served.TOO_SLOW


@pytest.mark.parametrize(
    ("recipe", "capability", "served"),
    [
        (Recipe.FP8_DYNAMIC, "7.0", Served.NOT), (Recipe.FP8_DYNAMIC, "8.0", Served.WELL),
        (Recipe.FP8_DYNAMIC, "8.9", Served.WELL), (Recipe.FP8_DYNAMIC, "9.0", Served.WELL),
        (Recipe.FP8_DYNAMIC, "10.0", Served.WELL), (Recipe.FP8_DYNAMIC, "12.0", Served.WELL),
        (Recipe.W8A8_GPTQ, "7.0", Served.NOT), (Recipe.W8A8_GPTQ, "7.5", Served.WELL),
        (Recipe.W8A8_GPTQ, "9.0", Served.WELL), (Recipe.W8A8_GPTQ, "10.0", Served.NOT),
        (Recipe.W8A8_RTN, "12.0", Served.NOT),
        (Recipe.W4A16_AWQ, "7.0", Served.NOT), (Recipe.W4A16_AWQ, "8.6", Served.WELL),
        (Recipe.W4A16_RTN, "12.0", Served.WELL),
    ],
)  # fmt: skip
def test_a_gpu_elsewhere_is_judged_by_what_is_published(
    recipe: Recipe, capability: str, served: Served
) -> None:
    # The engine was asked on this CPU: that says nothing about the GPU.
    assert of(recipe, asked(), cuda(capability)).served is served
    assert of(recipe, None, cuda(capability)).served is served


def test_an_unknown_gpu_or_machine_is_unknown_and_said_how_to_change_it() -> None:
    for answer in (of(Recipe.W8A8_RTN, asked(), cuda(None)), of(Recipe.W8A8_RTN, None, None)):
        assert answer.served is Served.UNKNOWN
        assert "set `hardware" in answer.reason


def test_no_scheme_has_two_rows_for_one_machine_and_every_row_names_its_source() -> None:
    for scheme in SCHEMES:
        for device in ("cpu", "cuda", "rocm", "xpu"):
            for capability in (6.0, 7.0, 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 12.0):
                rows = [
                    r
                    for r in MATRIX
                    if (r.scheme, r.device) == (scheme, device) and r.least <= capability < r.below
                ]
                assert len(rows) <= 1, (scheme, device, capability)
                if device in ("cpu", "cuda"):
                    assert len(rows) == 1, (scheme, device, capability)
    assert all(row.source for row in MATRIX)


def source(kind: WeightKind, *schemes: str, method: str | None = None) -> WeightFormat:
    return WeightFormat(kind=kind, method=method or kind.value, schemes=schemes)


def test_quantized_sources_are_served_where_engine_and_kernel_take_them() -> None:
    assert source_support(PLAIN, None, None).served is Served.WELL
    gptq4, gptq8 = source(WeightKind.GPTQ, "w4a16-int"), source(WeightKind.GPTQ, "w8a16-int")
    assert source_support(gptq4, asked(), None).served is Served.WELL
    assert source_support(gptq8, asked(), None).served is Served.NOT
    assert source_support(gptq8, asked(), cuda("8.0")).served is Served.WELL


def test_a_method_that_the_engine_does_not_take_is_refused() -> None:
    for found in (source(WeightKind.GGUF), source(WeightKind.OTHER, method="bitsandbytes")):
        answer = source_support(found, asked(), None)
        assert answer.served is Served.NOT
        assert found.method is not None
        assert found.method in answer.reason
    assert source_support(source(WeightKind.GGUF), None, cuda("9.0")).served is Served.NOT


def test_the_worst_of_several_schemes_counts_and_none_known_is_unknown() -> None:
    mixed = source(WeightKind.COMPRESSED_TENSORS, "w8a8-int", "w8a8-float")
    assert source_support(mixed, asked(), None).served is Served.TOO_SLOW
    odd = source(WeightKind.COMPRESSED_TENSORS)
    assert source_support(odd, asked(), None).served is Served.UNKNOWN
    fp8 = source(WeightKind.OTHER, "w8a8-float", method="fp8")
    assert (
        source_support(fp8, asked().model_copy(update={"methods": ("fp8",)}), None).served
        is Served.TOO_SLOW
    )
    nvfp4 = source(WeightKind.COMPRESSED_TENSORS, "w4a4-float")
    assert source_support(nvfp4, asked(), None).served is Served.UNKNOWN
