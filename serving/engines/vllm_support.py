"""Asks an installed vLLM which quantized weights it serves on this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from lockgate.domain.serving_support import EngineSupport
from lockgate.errors import ServingError

PROBE = Path(__file__).with_name("_vllm_support_probe.py")


def ask_vllm(
    python: Path, schemes: Sequence[str], environment: dict[str, str], timeout: float = 300.0
) -> EngineSupport:
    """What the vLLM of `python` answers, in a process of its own; importing vLLM takes 10 s and more.

    Raises `ServingError` when it cannot be started, fails, takes longer than `timeout` seconds or answers nonsense.
    """
    hint = "make the serving environment again (`make setup`)"
    try:
        done = subprocess.run(
            # Isolated: this directory must not be searched, its vllm.py is not vLLM.
            [str(python), "-I", str(PROBE)],
            input=json.dumps(list(schemes)),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={
                **environment,
                "VLLM_LOGGING_LEVEL": "ERROR",
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
                "HF_HUB_OFFLINE": "1",
            },
            check=True,
        )
        return EngineSupport.model_validate_json(done.stdout)
    except subprocess.CalledProcessError as error:
        raise ServingError(
            f"vLLM of {python} cannot say what it serves: {error.stderr.strip()[-1000:]}", hint=hint
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ServingError(
            f"vLLM of {python} did not say within {timeout:.0f} s what it serves", hint=hint
        ) from error
    except OSError as error:
        raise ServingError(f"{python} cannot be started: {error}", hint=hint) from error
    except ValidationError as error:
        raise ServingError(
            f"vLLM of {python} answered something else: {error}", hint=hint
        ) from error
