"""Signatures by SSH keys: `ssh-keygen -Y sign|verify` as a process, bounded in time, that asks nobody anything.

Keys may lie in a file or in ssh-agent (then the public half is given). What OpenSSH says goes into errors without key material.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lockgate.domain.approval import NAMESPACE, Approver
from lockgate.errors import EnvironmentMissing, SigningError, UsageError

SECONDS = 30.0
"""Time limit of one run. A hardware key that wants to be touched has to be within it."""

_SECRET = re.compile(r"-----BEGIN [^-]*PRIVATE KEY-----.*?(-----END [^-]*-----|$)", re.DOTALL)
_LONG_BASE64 = re.compile(r"[A-Za-z0-9+/=]{80,}")


def sign(data: bytes, key: Path, *, namespace: str = NAMESPACE, seconds: float = SECONDS) -> str:
    """The armored signature over `data`.

    Raises:
        UsageError: there is no such key file.
        SigningError: the key cannot sign (a passphrase and no agent, a refused touch, …).
    """
    if not key.is_file():
        raise UsageError(f"there is no key {key}", hint="give an SSH private key, or its .pub half")
    code, output, said = _run(
        ("-Y", "sign", "-q", "-f", str(key.absolute()), "-n", namespace), data, seconds
    )
    if code or not output.startswith("-----BEGIN SSH SIGNATURE-----"):
        raise SigningError(
            f"{key} cannot sign: {said or f'exit status {code}'}",
            hint="a key with a passphrase: add it to ssh-agent (`ssh-add`) and give its .pub file",
        )
    return output


def verify(
    data: bytes,
    armored: str,
    approver: Approver,
    name: str,
    *,
    at: datetime,
    namespace: str = NAMESPACE,
    seconds: float = SECONDS,
) -> str | None:
    """None where the approver's key made this signature over `data` and was valid at that time; else OpenSSH's words.

    Raises `SigningError` where it could not be asked: that is no answer.
    """
    time = at.astimezone(UTC).strftime("%Y%m%d%H%M%SZ")
    with tempfile.TemporaryDirectory(prefix="lockgate-verify-") as scratch:
        signers, signature = Path(scratch, "signers"), Path(scratch, "signature")
        signers.write_text(approver.allowed_signers(name))
        signature.write_text(armored)
        code, _, said = _run(
            ("-Y", "verify", "-f", str(signers), "-I", name, "-n", namespace,
             "-s", str(signature), f"-Overify-time={time}"),
            data, seconds,
        )  # fmt: skip
    if code == 0:
        return None
    if code < 0:
        raise SigningError(f"ssh-keygen was ended by signal {-code}: nothing was verified")
    return said.replace(scratch, "") or f"ssh-keygen ended with {code}"


def public_key(key: Path, *, seconds: float = SECONDS) -> str:
    """Base64 of the public half of a key file, or of a `.pub` file.

    Raises:
        UsageError: it is no key that can be read.
    """
    try:
        text = key.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key {key} cannot be read: {error}") from error
    if "PRIVATE KEY" in text:
        beside = key.with_name(f"{key.name}.pub")
        if beside.is_file():
            text = beside.read_text()
        else:
            code, text, said = _run(("-y", "-f", str(key.absolute())), b"", seconds)
            if code:
                raise UsageError(f"the key {key} cannot be read: {said}")
    words = text.split()
    if len(words) < 2:
        raise UsageError(f"{key} is no SSH key")
    return words[1]


def _run(arguments: Sequence[str], data: bytes, seconds: float) -> tuple[int, str, str]:
    """Exit status, output and redacted words of one `ssh-keygen`; its process group is ended in any case."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.environ.get("HOME", "/"),
        "LC_ALL": "C",
        "SSH_ASKPASS_REQUIRE": "never",
    }
    agent = os.environ.get("SSH_AUTH_SOCK")
    if agent is not None:
        environment["SSH_AUTH_SOCK"] = agent
    try:
        # A session of its own: without a terminal nothing is asked on it.
        process = subprocess.Popen(
            ["ssh-keygen", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EnvironmentMissing(
            "ssh-keygen is not installed", hint="install OpenSSH's client, 8.9 or newer"
        ) from error
    try:
        output, error_output = process.communicate(data, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise SigningError(
            f"ssh-keygen did not end within {seconds:.0f} s",
            hint="a hardware key has to be touched; an agent has to answer",
        ) from error
    finally:
        if process.poll() is None:
            # It may end between the two calls.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, output.decode(errors="replace"), redacted(error_output)


def redacted(output: bytes) -> str:
    """What a program said, on one line, without key material."""
    text = _SECRET.sub("[key]", output.decode(errors="replace"))
    lines = [line.strip() for line in _LONG_BASE64.sub("[…]", text).splitlines() if line.strip()]
    return "; ".join(lines)[-500:]
