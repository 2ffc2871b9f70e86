"""Who we are at a registry, as `docker login`, `podman login` or a credential helper recorded it.

Files are looked for where the tools do: `REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`,
`$XDG_RUNTIME_DIR/containers/auth.json`. Nothing is cached: a token renewed by a helper is seen by the next request for one.
"""

from __future__ import annotations

import base64
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockgate.domain.digests import read_json
from lockgate.errors import RegistryError

HELPER_SECONDS = 30.0


@dataclass(frozen=True)
class Credentials:
    """A user's name and password, or an identity token that is exchanged for access tokens."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """Value of a `Basic` Authorization header."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


def find(host: str) -> Credentials | None:
    """Credentials for a registry host, or None where nobody logged in. Raises `RegistryError` on an unusable file."""
    for path in _files():
        config = _read(path)
        if config is None:
            continue
        for name in _names(host):
            try:
                helper = (config.get("credHelpers") or {}).get(name) or config.get("credsStore")
                entry = (config.get("auths") or {}).get(name)
                found = _ask(str(helper), name) if helper else None
                found = found or (_decode(entry) if entry else None)
            except (AttributeError, TypeError, ValueError) as error:
                raise RegistryError(f"the entry for {name} in {path} cannot be read") from error
            if found:
                return found
    return None


def _files() -> list[Path]:
    files = []
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        files.append(Path(named))
    docker = os.environ.get("DOCKER_CONFIG")
    files.append((Path(docker) if docker else Path("~/.docker").expanduser()) / "config.json")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        files.append(Path(runtime) / "containers" / "auth.json")
    return files


def _names(host: str) -> list[str]:
    names = [host, f"https://{host}", f"http://{host}"]
    if host in ("docker.io", "registry-1.docker.io", "index.docker.io"):
        names.append("https://index.docker.io/v1/")
    return names


def _read(path: Path) -> dict[str, Any] | None:
    try:
        config = read_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RegistryError(f"registry credentials in {path} cannot be read: {error}") from error
    return config if isinstance(config, dict) else None


def _decode(entry: dict[str, Any]) -> Credentials | None:
    """Raises `ValueError`, `TypeError` and `AttributeError` for what no login wrote."""
    if token := entry.get("identitytoken"):
        return Credentials(identity_token=_text(token))
    if encoded := entry.get("auth"):
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        return Credentials(user, password.rstrip("\0"))
    if entry.get("username"):
        return Credentials(_text(entry["username"]), _text(entry.get("password", "")))
    return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _ask(helper: str, name: str) -> Credentials | None:
    command = [f"docker-credential-{helper}", "get"]
    try:
        done = subprocess.run(
            command,
            input=name.encode(),
            capture_output=True,
            timeout=HELPER_SECONDS,
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise RegistryError(
            f"{command[0]} is not installed but the Docker configuration names it",
            hint=f"install it, or log in to {name} without a credential helper",
        ) from error
    except OSError as error:
        raise RegistryError(f"{command[0]} cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RegistryError(f"{command[0]} gave no answer in {HELPER_SECONDS:.0f} s") from error
    if done.returncode != 0:
        # Helpers say "credentials not found" this way; the output may hold secrets and is not repeated.
        return None
    try:
        answer = read_json(done.stdout)
        user, secret = _text(answer["Username"]), _text(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{command[0]} answered something else than credentials") from error
    return Credentials(identity_token=secret) if user == "<token>" else Credentials(user, secret)
