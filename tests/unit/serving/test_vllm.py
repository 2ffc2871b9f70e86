from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lockgate.domain.spec import ServingSpec
from lockgate.errors import ServingError, UsageError
from serving.engines.registry import ENGINES, engine
from serving.engines.vllm import HISTOGRAM_BUCKETS


def arguments(**serving: object) -> list[str]:
    spec = ServingSpec.model_validate({"served_model_name": "smol", **serving})
    return engine("vllm").arguments(spec, model_path="/models", host="0.0.0.0", port=8000)


@pytest.mark.parametrize(
    "argument",
    [
        "--model",
        "--model=org/other",
        "--served_model_name",
        "--port",
        "--por",
        "--trust-remote-code",
        "--trust-remote",
        "--trust_remote_code",
        "--config",
        "--api-key=secret",
        "--max-model-len",
        "--shutdown-timeout",
        "--tokenizer",
        "org/other-model",
    ],
)
def test_an_argument_that_lockgate_owns_is_refused_however_it_is_spelled(argument: str) -> None:
    with pytest.raises(UsageError, match=r"serving\.args"):
        arguments(args=[argument])


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONPATH", "HF_TOKEN", "VLLM_API_KEY", "PATH"])
def test_an_environment_that_would_run_other_code_or_hold_a_secret_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        engine("vllm").environment(ServingSpec(served_model_name="smol", env={name: "x"}))


def test_arguments_of_the_spec_follow_verbatim_and_last() -> None:
    extra = ["--enforce-eager", "--max-num-batched-tokens", "512"]
    found = arguments(args=extra, max_model_len=1024, max_num_seqs=8, dtype="bfloat16")
    assert found[0] == "/models"
    assert found[-3:] == extra
    for flag, value in (
        ("--max-model-len", "1024"),
        ("--max-num-seqs", "8"),
        ("--dtype", "bfloat16"),
    ):
        assert found[found.index(flag) + 1] == value


def test_buckets_are_fine_where_service_levels_lie_and_can_be_replaced() -> None:
    itl = [b for b in HISTOGRAM_BUCKETS["inter_token_latency"] if 0.01 <= b <= 0.3]
    assert max(high / low for low, high in pairwise(itl)) < 1.15
    for bounds in HISTOGRAM_BUCKETS.values():
        assert all(low < high for low, high in pairwise(bounds))
    own = '{"time_to_first_token":[1]}'
    assert (
        arguments(args=["--custom-histogram-buckets", own]).count("--custom-histogram-buckets") == 1
    )


def test_an_unknown_engine_is_named_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"'trtllm'[\s\S]*vllm"):
        engine("trtllm")


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_engine_can_be_moved_to_another_address_and_to_cores_of_its_own(name: str) -> None:
    found = engine(name)
    spec = ServingSpec(served_model_name="smol", engine=name)
    arguments = found.arguments(spec, model_path="/models", host="0.0.0.0", port=found.port)
    command = found.local_command(Path("/env/python"), arguments, host="127.0.0.1", port=4321)
    assert command[0] == "/env/python"
    assert "4321" in command
    assert "127.0.0.1" in command
    assert "0.0.0.0" not in command
    assert str(found.port) not in command
    assert found.placement([2, 3]) != found.placement([1])
    assert found.placement([], ["0"]) != found.placement([], ["1"])
    assert found.placement([]) == {}
    assert found.health_path.startswith("/")
    assert "DO_NOT_TRACK" in found.environment(spec)


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize(
    ("python", "said"),
    [(Path("/nonexistent/python"), "cannot be started"), (Path(sys.executable), "No module named")],
)
def test_an_engine_that_cannot_be_asked_is_an_error_and_no_answer(
    name: str, python: Path, said: str
) -> None:
    with pytest.raises(ServingError, match=said):
        engine(name).support(python, ["w8a8-int"], {})
