"""Provide what tests need beside the Python environments, without root, in the cache: Debian's docker-registry, prometheus
and skopeo, and Sigstore's own verifier in JavaScript.

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
from lockgate.pip_runs import run_logged  # noqa: E402


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


SKOPEO_LIBRARIES = ("libgpgme11", "libassuan0")
SIGSTORE_JS = ("@sigstore/verify@3.1.1", "@sigstore/bundle@4.0.0")
NPM_SECONDS = 300


def provide_skopeo() -> None:
    """skopeo with the libraries it is linked against, behind a script that finds them."""
    link = ROOT / ".venv/bin/skopeo"
    if shutil.which("skopeo") or link.exists():
        return
    tools, log = cache_root() / "tools", cache_root() / "logs" / "skopeo.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for package in ("skopeo", *SKOPEO_LIBRARIES):
        unpack_package(package, tools / package, log)
    (program,) = (tools / "skopeo").glob("usr/bin/skopeo")
    places = [next((tools / name).glob("usr/lib/*")) for name in SKOPEO_LIBRARIES]
    path = ":".join(map(str, places))
    link.write_text(f'#!/bin/sh\nexec env LD_LIBRARY_PATH="{path}" "{program}" "$@"\n')
    link.chmod(0o755)
    try:
        run_logged([str(link), "--version"], log, 60, "Debian's skopeo does not run here")
    except EnvironmentMissing:
        link.unlink()
        raise


def provide_sigstore_js() -> None:
    """@sigstore/verify where Node.js is: tests run it as somebody else's verifier."""
    target, log = cache_root() / "tools" / "sigstore-js", cache_root() / "logs" / "sigstore-js.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if (target / "node_modules/@sigstore/verify").is_dir():
        return
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise EnvironmentMissing("node and npm are not on PATH", hint="apt install nodejs npm")
    target.mkdir(parents=True, exist_ok=True)
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(target)]
    run_logged([*npm, *SIGSTORE_JS], log, NPM_SECONDS, "@sigstore/verify could not be installed")


def require(program: str, package: str) -> None:
    """A program of the system's own."""
    if shutil.which(program) is None:
        raise EnvironmentMissing("not on PATH", hint=f"apt install {package}")


def require_postgresql() -> None:
    """Debian's PostgreSQL, for a Prefect server's database. It links against half of the system: no unpacking of one package."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        raise EnvironmentMissing("not installed", hint="apt install postgresql")


def main() -> int:
    left_out = []
    for name, provide in (
        ("docker-registry", lambda: provide_program("docker-registry")),
        ("prometheus", lambda: provide_program("prometheus")),
        ("skopeo", provide_skopeo),
        ("sigstore-js", provide_sigstore_js),
        ("openssl", lambda: require("openssl", "openssl")),
        ("postgresql", require_postgresql),
        ("ssh-keygen", lambda: require("ssh-keygen", "openssh-client")),
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
