"""Who we are at a registry, as `docker login`, `podman login` or a credential helper recorded it.

Files are looked for where the tools do: `REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`,
`$XDG_RUNTIME_DIR/containers/auth.json`. Nothing is cached: a token renewed by a helper is seen by the next request for one.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
            helper = (config.get("credHelpers") or {}).get(name) or config.get("credsStore")
            found = _ask(helper, name) if helper else None
            entry = (config.get("auths") or {}).get(name)
            found = found or (_decode(path, name, entry) if entry else None)
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
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RegistryError(f"registry credentials in {path} cannot be read: {error}") from error
    return config if isinstance(config, dict) else None


def _decode(path: Path, name: str, entry: dict[str, Any]) -> Credentials | None:
    if token := entry.get("identitytoken"):
        return Credentials(identity_token=token)
    if encoded := entry.get("auth"):
        try:
            user, _, password = base64.b64decode(encoded).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise RegistryError(f"the entry for {name} in {path} is not base64") from error
        return Credentials(user, password.rstrip("\0"))
    if entry.get("username"):
        return Credentials(entry["username"], entry.get("password", ""))
    return None


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
    except subprocess.TimeoutExpired as error:
        raise RegistryError(f"{command[0]} gave no answer in {HELPER_SECONDS:.0f} s") from error
    if done.returncode != 0:
        # Helpers say "credentials not found" this way; the output may hold secrets and is not repeated.
        return None
    try:
        answer = json.loads(done.stdout)
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{command[0]} answered something else than credentials") from error
    return Credentials(identity_token=secret) if user == "<token>" else Credentials(user, secret)
