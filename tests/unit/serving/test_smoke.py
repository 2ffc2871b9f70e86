from __future__ import annotations

import pytest

from serving.smoke import degenerate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n ",
        "!!!!!!!!!!!!!!!!",
        "the the the the the the the the the the",
        "\ufffd\ufffd a \ufffd\ufffd",
        "0000000000000001",
    ],
)
def test_an_answer_of_a_broken_model_is_degenerate(text: str) -> None:
    assert degenerate(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        " Paris, Lyon and Marseille.",
        " Paris.",
        "1. Paris\n2. Paris\n3. Paris\n4. Paris",
        "巴黎、里昂和马赛是法国最大的三个城市。",
    ],
)
def test_a_poor_answer_is_not_degenerate(text: str) -> None:
    assert degenerate(text) is None
