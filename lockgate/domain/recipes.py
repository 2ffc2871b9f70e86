"""Quantization recipes as data: number formats, passes over the model, what they need.

The worker in the quantization environment gets a `RecipeDefinition` as JSON and knows operations, not recipe names. A
definition's digest is part of the step key, so a changed setting makes new weights.

Sources: GPTQ, Frantar et al., arXiv:2210.17323. SmoothQuant, Xiao et al., arXiv:2211.10438 (strength 0.8 as in
llm-compressor's INT8 example). AWQ, Lin et al., arXiv:2306.00978 (asymmetric int4 as there). Round to nearest needs no data.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from lockgate.domain.base import Frozen
from lockgate.domain.spec import Recipe


class NumberFormat(Frozen):
    """How the numbers of one kind of tensor are stored."""

    bits: int
    kind: Literal["int", "float"]
    strategy: Literal["channel", "group", "token"]
    """What shares a scale."""
    symmetric: bool = True
    """False: with a zero point."""
    dynamic: bool = False
    """Scales are computed while serving, so no data is needed for them."""


class Scheme(Frozen):
    """Number formats of the weights and, where they are quantized too, of the activations."""

    weights: NumberFormat
    activations: NumberFormat | None = None

    @property
    def name(self) -> str:
        """As engines tell them apart: `w8a8-int`, `w4a16-int`, `w4a16-int-asymmetric`, `w8a8-float`."""
        return scheme_name(
            self.weights.bits,
            self.activations.bits if self.activations else 16,
            self.weights.kind,
            symmetric=self.weights.symmetric,
        )


def scheme_name(weight_bits: int, activation_bits: int, kind: str, *, symmetric: bool) -> str:
    """The name of a scheme with these formats."""
    return f"w{weight_bits}a{activation_bits}-{kind}" + ("" if symmetric else "-asymmetric")


class Operation(StrEnum):
    """One pass over the model."""

    RTN = "rtn"
    """Round to nearest."""
    GPTQ = "gptq"
    """Round column by column, making up for the error in the columns that follow."""
    SMOOTHQUANT = "smoothquant"
    """Move outliers from activations into weights; rounds nothing itself."""
    AWQ = "awq"
    """Scale the channels that matter; rounds nothing itself."""


CALIBRATED = frozenset({Operation.GPTQ, Operation.SMOOTHQUANT, Operation.AWQ})


class Step(Frozen):
    operation: Operation
    settings: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """By llm-compressor's names."""


class RecipeDefinition(Frozen):
    """All that decides which bytes a recipe makes of given weights and texts."""

    recipe: Recipe
    scheme: Scheme
    steps: tuple[Step, ...]
    """In order; the last one rounds."""
    group_sizes: tuple[int, ...] = ()
    """Tried in order: the first that divides the inputs of every layer is taken."""
    ignore: tuple[str, ...] = ("lm_head",)
    """Layers that stay as they are."""

    @property
    def calibrated(self) -> bool:
        """Whether it looks at texts."""
        return any(step.operation in CALIBRATED for step in self.steps)


_INT8 = Scheme(
    weights=NumberFormat(bits=8, kind="int", strategy="channel"),
    activations=NumberFormat(bits=8, kind="int", strategy="token", dynamic=True),
)
_FP8 = Scheme(
    weights=NumberFormat(bits=8, kind="float", strategy="channel"),
    activations=NumberFormat(bits=8, kind="float", strategy="token", dynamic=True),
)
_INT4 = Scheme(weights=NumberFormat(bits=4, kind="int", strategy="group"))
_INT4_ASYMMETRIC = Scheme(
    weights=NumberFormat(bits=4, kind="int", strategy="group", symmetric=False)
)
_GROUPS = (128, 64, 32)

_RTN = Step(operation=Operation.RTN)
_GPTQ = Step(
    operation=Operation.GPTQ,
    settings={"block_size": 128, "dampening_frac": 0.01, "actorder": "static"},
)
_SMOOTH = Step(operation=Operation.SMOOTHQUANT, settings={"smoothing_strength": 0.8})
_AWQ = Step(operation=Operation.AWQ, settings={"n_grid": 20, "duo_scaling": True})

_DEFINITIONS = {
    definition.recipe: definition
    for definition in (
        RecipeDefinition(recipe=Recipe.W8A8_RTN, scheme=_INT8, steps=(_RTN,)),
        RecipeDefinition(recipe=Recipe.W8A8_GPTQ, scheme=_INT8, steps=(_GPTQ,)),
        RecipeDefinition(recipe=Recipe.W8A8_SMOOTHQUANT, scheme=_INT8, steps=(_SMOOTH, _RTN)),
        RecipeDefinition(recipe=Recipe.W8A8_SMOOTHQUANT_GPTQ, scheme=_INT8, steps=(_SMOOTH, _GPTQ)),
        RecipeDefinition(recipe=Recipe.W4A16_RTN, scheme=_INT4, steps=(_RTN,), group_sizes=_GROUPS),
        RecipeDefinition(
            recipe=Recipe.W4A16_GPTQ, scheme=_INT4, steps=(_GPTQ,), group_sizes=_GROUPS
        ),
        RecipeDefinition(
            recipe=Recipe.W4A16_AWQ,
            scheme=_INT4_ASYMMETRIC,
            steps=(_AWQ, _RTN),
            group_sizes=_GROUPS,
        ),
        RecipeDefinition(recipe=Recipe.FP8_DYNAMIC, scheme=_FP8, steps=(_RTN,)),
    )
}


def definition(recipe: Recipe) -> RecipeDefinition:
    """What `recipe` does. Raises `ValueError` for `none`, which does nothing."""
    try:
        return _DEFINITIONS[recipe]
    except KeyError:
        raise ValueError(f"recipe `{recipe}` quantizes nothing") from None
