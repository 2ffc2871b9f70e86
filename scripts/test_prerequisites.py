"""Provide what tests need beside the Python environments, without root: Debian's docker-registry and
prometheus, in the cache.

They are linked into .venv/bin. Prints, comma-separated, what could not be had: the tests that need it are left out, and are
named on standard error.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lockgate.debian_packages import unpack_package  # noqa: E402
from lockgate.environments import cache_root  # noqa: E402
from lockgate.errors import EnvironmentMissing  # noqa: E402


def provide_program(package: str) -> None:
    """The program that a Debian package of the same name carries."""
    link = ROOT / ".venv/bin" / package
    if shutil.which(package) or link.exists():
        return
    unpacked = cache_root() / "tools" / package
    log = cache_root() / "logs" / f"{package}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    unpack_package(package, unpacked, log)
    link.unlink(missing_ok=True)
    link.symlink_to(unpacked / "usr/bin" / package)


def provide_ssh_keygen() -> None:
    if shutil.which("ssh-keygen") is None:
        raise EnvironmentMissing("not on PATH", hint="apt install openssh-client")


def main() -> int:
    left_out = []
    for name, provide in (
        ("docker-registry", lambda: provide_program("docker-registry")),
        ("prometheus", lambda: provide_program("prometheus")),
        ("ssh-keygen", provide_ssh_keygen),
    ):
        try:
            provide()
        except EnvironmentMissing as error:
            left_out.append(name)
            print(f"tests that need {name} are left out: {error.diagnostics()}", file=sys.stderr)
    print(",".join(left_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
