"""Recipes as data: complete, distinct, and what they are called stays."""

from __future__ import annotations

import pytest

from lockgate.domain.recipes import CALIBRATED, Operation, definition
from lockgate.domain.serving_support import SCHEMES
from lockgate.domain.spec import Recipe

QUANTIZING = [recipe for recipe in Recipe if recipe is not Recipe.NONE]


@pytest.mark.parametrize("recipe", QUANTIZING)
def test_every_recipe_is_defined_and_ends_with_the_step_that_rounds(recipe: Recipe) -> None:
    found = definition(recipe)
    assert found.recipe is recipe
    rounding = (Operation.RTN, Operation.GPTQ)
    assert found.steps[-1].operation in rounding
    assert all(step.operation not in rounding for step in found.steps[:-1])
    assert found.calibrated == any(step.operation in CALIBRATED for step in found.steps)
    assert found.scheme.name in SCHEMES
    assert (found.scheme.weights.strategy == "group") == bool(found.group_sizes)


def test_no_two_recipes_do_the_same() -> None:
    done = {
        definition(recipe).model_copy(update={"recipe": Recipe.NONE}).content_digest()
        for recipe in QUANTIZING
    }
    assert len(done) == len(QUANTIZING)


def test_a_name_says_what_its_definition_does() -> None:
    for recipe in QUANTIZING:
        found, name = definition(recipe), recipe.value
        for part in ("gptq", "awq", "smoothquant"):
            assert (part in name) == any(step.operation.value == part for step in found.steps), name
        assert name.startswith("fp8") == (found.scheme.weights.kind == "float")
        if not name.startswith("fp8"):
            assert name.startswith(f"w{found.scheme.weights.bits}a")


def test_none_does_nothing() -> None:
    with pytest.raises(ValueError, match="quantizes nothing"):
        definition(Recipe.NONE)
