"""The tutorial's own commands, taken from its page, on a real model with real vLLM."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "tutorial.md"


@pytest.mark.timeout(2400)
def test_the_tutorial_does_what_it_says(
    demo_model: Path, serving_python: Path, kubectl: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_model, tmp_path / "my-finetune")
    commands = "".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S))
    assert commands.count("lockgate ") >= 14
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    unset = (
        "LOCKGATE_WORKSPACE",
        "LOCKGATE_STORE",
        "LOCKGATE_REMOTE",
        "LOCKGATE_TRIVY",
        "PREFECT_API_URL",
    )
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {"PATH": path, "COLUMNS": "200"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", commands],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=2300, check=False,
        )  # fmt: skip
    finally:
        subprocess.run(
            ["lockgate", "down"], cwd=tmp_path, env=environment, timeout=120, check=False
        )
    print(done.stdout, done.stderr, f"the tutorial took {time.monotonic() - began:.0f} s", sep="\n")
    assert done.returncode == 0
    said = done.stdout
    assert "my-finetune/local" in said and ": promoted: " in said and ": refused: " in said
    assert "why: evaluation: fail" in said
    assert "is below the floor 0.990" in said
    assert re.search(r"log: evaluate: \S+/evaluation\.log", said)
    assert "w8a8-rtn" in said and "B - A (95%)" in said
    assert (tmp_path / ".lockgate/reports/my-finetune-local.html").exists()
