"""What the Containerfile says, since no engine builds it here: sources that exist, hashes, no tag, no root."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from lockgate.environments import ENVIRONMENTS, PINNED_FILES

ROOT = Path(__file__).resolve().parents[3]
STATES = ROOT / "gitops_repo_template" / "platform" / "state-metrics" / "deployment.yaml"


def instructions() -> list[tuple[str, str]]:
    lines = [x for x in (ROOT / "Containerfile").read_text().splitlines() if not x.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(k, v.strip()) for k, _, v in (x.partition(" ") for x in joined.splitlines() if x)]


def of(kind: str) -> list[str]:
    return [value for name, value in instructions() if name == kind]


def copied() -> list[str]:
    """Sources from the checkout."""
    return [s for c in of("COPY") if not c.startswith("--from=") for s in shlex.split(c)[:-1]]


def seen_by_a_build(path: str) -> bool:
    """By .dockerignore: the last rule that is about a path, or about a directory above it, decides."""
    seen = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#"):
            pattern = rule.removeprefix("!")
            parts = path.split("/")
            prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
            if any(fnmatch(p, pattern) or fnmatch(f"/{p}", f"/{pattern}") for p in prefixes):
                seen = rule.startswith("!")
    return seen


def test_every_source_is_in_the_repository_and_seen_by_a_build_and_no_package_is_forgotten() -> (
    None
):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    ).stdout.splitlines()  # fmt: skip
    for source in copied():
        files = [f for f in listed if f == source or f.startswith(f"{source}/")]
        assert files, source
        assert all(map(seen_by_a_build, files)), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {*packages, "locks", "gitops_repo_template", "pyproject.toml"}
    needed |= {project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {"prefect.yaml"} == set(copied())


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "tests/conftest.py", ".lockgate/key.pem", "lockgate/__pycache__/x.pyc"])  # fmt: skip
def test_a_build_sees_nothing_that_a_checkout_gathers(path: str) -> None:
    assert not seen_by_a_build(path)


def test_the_base_is_given_from_outside_and_no_image_is_named_by_a_tag() -> None:
    assert of("ARG") == ["PYTHON_IMAGE"], "without a default, and nothing else can be passed in"
    assert instructions()[0] == ("ARG", "PYTHON_IMAGE")
    bases = [shlex.split(base) for base in of("FROM")]
    assert {base[0] for base in bases} == {"${PYTHON_IMAGE}"}
    stages = {base[2] for base in bases}
    assert {c.split()[0] for c in of("COPY") if c.startswith("--from=")} <= {
        f"--from={stage}" for stage in stages
    }


def test_packages_come_by_the_installer_that_asks_for_hashes_and_nothing_is_cached() -> None:
    commands = [c.strip() for run in of("RUN") for c in re.split(r"&&", run)]
    assert not [c for c in commands if re.search(r"\b(pip|curl|wget|npm|uv)\b", c)]
    (install,) = [shlex.split(c) for c in commands if "python3 -m" in c]
    assert install[:3] == ["python3", "-m", "lockgate.environments"]
    assert {"orchestrator"} <= set(install[3:]) <= ENVIRONMENTS.keys() | PINNED_FILES.keys()
    text = (ROOT / "lockgate" / "installation.py").read_text()
    assert '"--require-hashes"' in text.partition("def _install_lock")[2].partition("\ndef ")[0]
    assert "PIP_NO_CACHE_DIR=1" in shlex.split(of("ENV")[0])
    (system,) = [run for run in of("RUN") if "apt-get install" in run]
    assert "--no-install-recommends" in system
    assert "rm -rf /var/lib/apt/lists/*" in system


def test_it_runs_as_the_user_that_the_cluster_asks_for_and_runs_whatever_it_is_given() -> None:
    (user,) = of("USER")
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", user)
    number = int(user.partition(":")[0])
    assert f"--uid {number} " in " ".join(of("RUN"))
    deployment = next(
        d for d in yaml.safe_load_all(STATES.read_text()) if d["kind"] == "Deployment"
    )
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == number
    pool = (ROOT / "gitops_repo_template/platform/prefect/workpool.yaml").read_text()
    assert f'"runAsUser": {number}' in pool
    # The pool gives a command as arguments alone: an entry point of Lockgate's would take them for its own.
    assert '"args": "{{ command }}"' in pool
    (entry,), (default,) = of("ENTRYPOINT"), of("CMD")
    assert json.loads(entry) == ["tini", "-g", "--"]
    assert json.loads(default)[0] == "lockgate"
    kinds = [name for name, _ in instructions()]
    assert kinds.index("USER") > max(n for n, kind in enumerate(kinds) if kind in ("RUN", "COPY"))
