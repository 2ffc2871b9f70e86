"""Exactly the files that the image holds are enough to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.unit.house.test_containerfile import ROOT, copied

PROBE = """
import sys
from pathlib import Path
import flows.release, serving, tasks.workspace
from lockgate.adapters.git import template_directory
from lockgate.cli import main
from lockgate.environments import ENVIRONMENTS, lock_file
root = Path(sys.argv.pop(1)).resolve()
used = [template_directory(), Path(tasks.workspace.__file__), Path(flows.release.__file__)]
used += [lock_file(lock) for lock in ENVIRONMENTS["orchestrator"].locks]
assert all(path.resolve().is_relative_to(root) for path in used), used
main()
"""


def test_the_files_of_the_image_run_the_command_line_and_find_locks_and_template(
    tmp_path: Path,
) -> None:
    for source in copied():
        target = tmp_path / source
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path), "metrics", "--help"],
        cwd="/", env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--listen" in done.stdout
