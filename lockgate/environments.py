"""The Python environments and pinned files that Lockgate works with: what they are and where they lie.

Three environments, because their pins contradict each other: the *orchestrator* (`.venv` in the clone; no torch), *serving*
(vLLM on CPUs) and *quantization* (llm-compressor, and the conversion of GGUF files). The last two lie in a cache outside the
clone, named by the digest of what they are made from: a second clone re-uses them, and a changed lock makes new ones beside
the old. `lockgate.installation` makes them.

This module also runs before anything is installed (`python3 -m lockgate.environments orchestrator`): standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lockgate.errors import EnvironmentMissing, LockgateError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

REPOSITORY = Path(__file__).resolve().parent.parent
MARKER = "lockgate-environment.json"
TORCH_VERSION = "2.13.0"

_GIB = 1 << 30


@dataclass(frozen=True)
class Environment:
    """A virtual environment: its locks in the order of installation, and what proves that it works.

    `left_out` names distributions that its packages ask for and that it does without on purpose; `free_bytes` is the disk
    space that making it takes.
    """

    name: str
    locks: tuple[str, ...]
    check: str
    free_bytes: int
    torch: bool = False
    left_out: frozenset[str] = frozenset()
    override: str | None = None
    """Environment variable that names another interpreter to use, e.g. on a GPU machine with a `vllm` of its own."""


ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (
        Environment(
            name="orchestrator",
            locks=("build", "orchestrator"),
            check="import lockgate, prefect, sigstore",
            free_bytes=3 * _GIB,
        ),
        Environment(
            name="serving",
            locks=("serving",),
            check=(
                "from vllm.platforms import current_platform\n"
                "import vllm.entrypoints.openai.api_server\n"
                "if not current_platform.is_cpu(): raise SystemExit('vLLM does not see a CPU platform')"
            ),
            free_bytes=4 * _GIB,
            torch=True,
            left_out=frozenset({"torchaudio", "torchcodec", "torchvision", "triton"}),
            override="LOCKGATE_SERVING_PYTHON",
        ),
        Environment(
            name="quantization",
            locks=("quantization",),
            check="import accelerate, gguf, llmcompressor, transformers",
            free_bytes=3 * _GIB,
            torch=True,
            override="LOCKGATE_QUANTIZATION_PYTHON",
        ),
    )
}


@dataclass(frozen=True)
class PinnedFile:
    """One file out of a hash-pinned package, kept in the cache: `kind/lock-digest/file_name`."""

    name: str
    lock: str
    kind: str
    file_name: str
    mode: int = 0o644

    def path(self) -> Path:
        digest = _sha256_text(lock_file(self.lock).read_text())
        return cache_root() / self.kind / f"{self.name}-{digest[:12]}" / self.file_name


DEMO_MODEL = PinnedFile(
    name="demo-model", lock="demo-model", kind="models", file_name="SmolLM2-135M-Instruct.Q4_1.gguf"
)
KUBECTL = PinnedFile(name="kubectl", lock="kubectl", kind="tools", file_name="kubectl", mode=0o755)
PINNED_FILES = {file.name: file for file in (DEMO_MODEL, KUBECTL)}


def cache_root() -> Path:
    """Where environments and pinned files are shared between clones: `$LOCKGATE_CACHE`, else the XDG cache."""
    chosen = os.environ.get("LOCKGATE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "lockgate"


def lock_file(name: str) -> Path:
    """A lock of the clone. Lockgate is installed from its clone (editable), which therefore has to stay."""
    path = REPOSITORY / "locks" / f"{name}.lock"
    if not path.is_file():
        raise EnvironmentMissing(
            f"there is no {path}", hint="install Lockgate from a clone: `make setup` there"
        )
    return path


def environment_directory(name: str) -> Path:
    """Where the environment lies once it is made."""
    if name == "orchestrator":
        return REPOSITORY / ".venv"
    return cache_root() / "environments" / f"{name}-{_built_digest(name)[:12]}"


def environment_python(name: str) -> Path:
    """The interpreter of a finished environment.

    An override (`LOCKGATE_SERVING_PYTHON`, `LOCKGATE_QUANTIZATION_PYTHON`) wins. Raises EnvironmentMissing, which names the
    command that makes it.
    """
    environment = ENVIRONMENTS[name]
    overriding = _overriding_python(environment)
    if overriding is not None:
        return overriding
    directory = environment_directory(name)
    if not is_complete(name):
        raise EnvironmentMissing(
            f"the {name} environment is not there (looked in {directory})", hint=_command(name)
        )
    return directory / "bin" / "python"


def environment_digest(name: str) -> str:
    """What an environment consists of, as `sha256:<hex>`: it goes into step keys and the runtime's identity.

    Of its locks, torch version, Python minor version and platform; of an overriding interpreter, whose lock is unknown, of
    the distributions that are installed in it. Needs no finished environment, but an overriding one.
    """
    overriding = _overriding_python(ENVIRONMENTS[name])
    return f"sha256:{_inventory_digest(overriding) if overriding else _built_digest(name)}"


def read_marker(directory: Path) -> dict[str, object] | None:
    """What the installer wrote last into a finished environment; None where it never came that far."""
    try:
        marker = json.loads((directory / MARKER).read_text())
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def is_complete(name: str, *, dev: bool = False) -> bool:
    """Whether the environment was finished from today's locks, for this clone, on an interpreter that is still there."""
    directory = environment_directory(name)
    marker = read_marker(directory)
    return (
        marker is not None
        and marker.get("digest") == _built_digest(name)
        and (name != "orchestrator" or marker.get("repository") == str(REPOSITORY))
        and (not dev or marker.get("dev") == dev_digest())
        and (directory / "bin" / "python").exists()
    )


def dev_digest() -> str:
    """Hex digest of the lock with the test and check tools."""
    return _sha256_text(lock_file("dev").read_text())


def demo_model_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file. Raises EnvironmentMissing where it was not fetched."""
    path = DEMO_MODEL.path()
    if not path.is_file():
        raise EnvironmentMissing("the demo's model is not there", hint=_command(DEMO_MODEL.name))
    return path


def kubectl_path() -> Path:
    """`kubectl` (with Kustomize inside) from PATH, else the pinned one. Raises EnvironmentMissing without either."""
    on_path = shutil.which("kubectl")
    if on_path:
        return Path(on_path)
    path = KUBECTL.path()
    if not path.is_file():
        raise EnvironmentMissing(
            "kubectl is neither on PATH nor in the cache", hint=_command(KUBECTL.name)
        )
    return path


def _command(target: str) -> str:
    return f"run: cd {REPOSITORY} && python3 -m lockgate.environments {target}"


def _overriding_python(environment: Environment) -> Path | None:
    chosen = os.environ.get(environment.override) if environment.override else None
    if not chosen:
        return None
    path = Path(chosen).expanduser()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise EnvironmentMissing(
            f"{environment.override} names {path}, which is no executable",
            hint=f"point {environment.override} at the Python of the {environment.name} environment, or unset it",
        )
    return path.absolute()


def _built_digest(name: str) -> str:
    environment = ENVIRONMENTS[name]
    made_from = {
        "locks": {lock: _sha256_text(lock_file(lock).read_text()) for lock in environment.locks},
        "platform": f"{sys.platform}-{platform.machine()}",
        "python": "{}.{}".format(*sys.version_info[:2]),
        "torch": TORCH_VERSION if environment.torch else None,
    }
    return _sha256_text(json.dumps(made_from, sort_keys=True))


_INVENTORY = (
    "import importlib.metadata as m, platform, sys\n"
    "found = {(d.metadata['Name'].lower(), d.version) for d in m.distributions() if d.metadata['Name']}\n"
    "print(sys.platform, platform.machine(), platform.python_version())\n"
    "print(*(f'{n}=={v}' for n, v in sorted(found)), sep='\\n')"
)


def _inventory_digest(python: Path) -> str:
    try:
        listed = subprocess.run(
            [str(python), "-c", _INVENTORY],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentMissing(
            f"{python} cannot say what is installed in it: {error}",
            hint="check that it is a working Python",
        ) from error
    return _sha256_text(listed.stdout)


def _sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _leave_on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is named, if it is not there; print where each lies, one `name: path` line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m lockgate.environments", description=main.__doc__
    )
    targets = (*ENVIRONMENTS, *PINNED_FILES)
    parser.add_argument("targets", nargs="+", choices=targets, metavar="|".join(targets))
    parser.add_argument(
        "--dev", action="store_true", help="with the test and check tools (orchestrator only)"
    )
    chosen = parser.parse_args(arguments)
    # A default SIGTERM would leave pip running in its own process group.
    signal.signal(signal.SIGTERM, _leave_on_sigterm)
    try:
        # Only here: the product looks environments up, it never makes them.
        from lockgate import installation

        for target in chosen.targets:
            if target in PINNED_FILES:
                path = installation.ensure_file(PINNED_FILES[target])
            else:
                path = installation.ensure_environment(
                    ENVIRONMENTS[target], dev=chosen.dev and target == "orchestrator"
                )
            print(f"{target}: {path}", flush=True)
    except LockgateError as error:
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the next run starts this environment over", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # The installer imports this module by its name: run that copy, so that there is one of each constant.
    from lockgate.environments import main as named_main

    sys.exit(named_main())
