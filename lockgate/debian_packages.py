"""Single files out of Debian packages, without root and without touching the system.

For the few things that no Python package carries. apt-get reads the machine's own sources into private lists (the system's
may be empty, and need root to be filled), checks the signatures as always, and the package is unpacked into the cache, never
installed: none of its scripts runs, no service starts. Standard library only.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lockgate.errors import EnvironmentMissing
from lockgate.pip_runs import run_logged

APT_SECONDS = 300
"""Time limit of one apt-get run."""


def unpack_package(package: str, directory: Path, log: Path) -> None:
    """Unpack the newest version of a Debian package into `directory`, unless it is there.

    Raises EnvironmentMissing on a machine without apt, and where no source has the package.
    """
    if directory.is_dir():
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise EnvironmentMissing(f"this machine has no apt-get to fetch {package} with")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"{package}-") as scratch_name:
        scratch = Path(scratch_name)
        for part in ("lists/partial", "cache/archives/partial", "unpacked"):
            (scratch / part).mkdir(parents=True)
        apt_get = ["apt-get", "-q", "-o", f"Dir::State::Lists={scratch / 'lists'}"]
        apt_get += ["-o", f"Dir::Cache={scratch / 'cache'}", "-o", "APT::Sandbox::User="]
        apt_get += ["-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30"]
        failure = f"Debian's {package} could not be fetched"
        run_logged([*apt_get, "update"], log, APT_SECONDS, failure)
        run_logged([*apt_get, "download", package], log, APT_SECONDS, failure, directory=scratch)
        packages = list(scratch.glob("*.deb"))
        if len(packages) != 1:
            raise EnvironmentMissing(f"{failure}: apt-get left {len(packages)} files", log=log)
        unpack = ["dpkg-deb", "-x", str(packages[0]), str(scratch / "unpacked")]
        run_logged(unpack, log, APT_SECONDS, failure)
        (scratch / "unpacked").rename(directory)
