"""Who may approve: OpenSSH's allowed_signers with roles, and what a signature says about its key.

The file is read strictly: what this module does not understand refuses the whole file, and ssh-keygen is then given single
lines that were written from what was understood. So no line can mean one thing here and another there.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from lockgate.errors import GitError

NAMESPACE = "lockgate-approval"
"""Of the signatures (`ssh-keygen -n`): one that was made for Git commits or files is none."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}$"
"""Of a signer: also the name of a file, so without slashes, and no pattern."""

_KEY_TYPE = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9-]+(@openssh\.com)?")
_ROLE = re.compile(r"[a-z0-9][a-z0-9-]*")
_AUTHOR = re.compile(r"(.*?)\s*<([^<>]*)>")
_ACCOUNT = re.compile(r"(github|gitlab)=(.*)")
_LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[1-9][0-9]*)?")
_OPTION = re.compile(r'([a-z-]+)(?:="([^"]*)")?')
_OPTIONS = re.compile(r'(?:[^\s"]|"[^"]*")+')
_ARMOR = re.compile(
    r"\s*-----BEGIN SSH SIGNATURE-----\s+([A-Za-z0-9+/=\s]+?)-----END SSH SIGNATURE-----\s*"
)
_MAGIC = b"SSHSIG"


@dataclass(frozen=True)
class Approver:
    """One line of the file: a key and the names of the person who has it."""

    names: tuple[str, ...]
    key_type: str
    key: str
    """Base64 of the public key."""
    roles: frozenset[str] = frozenset()
    namespaces: tuple[str, ...] = ()
    """Empty: any."""
    validity: tuple[str, ...] = ()
    """`valid-after="…"` and `valid-before="…"`, as written."""
    accounts: frozenset[str] = frozenset()
    """At forges, as written and in lower case: `github=LOGIN`, or `github=LOGIN:ID`."""

    def allowed_signers(self, name: str) -> str:
        """The line for ssh-keygen, of one of the names alone."""
        options = ",".join((f'namespaces="{NAMESPACE}"', *self.validity))
        return f"{name} {options} {self.key_type} {self.key}\n"

    def is_same_person(self, other: Approver) -> bool:
        """Whether both lines share a name, the key, or an account."""
        shared = _folded(self.names) & _folded(other.names) or self._logins() & other._logins()
        return self.key == other.key or bool(shared)

    def has_account(self, forge: str, login: str, number: int) -> bool:
        """Whether the line names this account of a forge; where it gives the account's number too, that has to fit."""
        plain = f"{forge}={login}".casefold()
        return bool({plain, f"{plain}:{number}"} & self.accounts)

    def is_valid(self, at: datetime) -> bool:
        """Whether the line holds at that time, as ssh-keygen would say of its key."""
        for option in self.validity:
            which, _, value = option.replace('"', "").partition("=")
            moment = _moment(value)
            if moment is None or (at < moment) is (which == "valid-after"):
                return False
        return True

    def _logins(self) -> set[str]:
        return {account.partition(":")[0] for account in self.accounts}


def read_approvers(text: str) -> tuple[Approver, ...]:
    """Every line of the file. Raises `GitError` naming the line that is not understood."""
    approvers = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            approvers.append(_read_line(line))
        except ValueError as error:
            raise GitError(
                f"approvers, line {number}: {error}",
                hint='write: NAME namespaces="lockgate-approval" KEY-TYPE KEY roles=ROLE',
            ) from error
    return tuple(approvers)


def person(approver: Approver, approvers: Sequence[Approver]) -> tuple[Approver, ...]:
    """All lines of the person who has this one: linked by a name or a key, directly or through another line."""
    mine = [approver]
    rest = [line for line in approvers if line != approver]
    while found := [line for line in rest if any(line.is_same_person(m) for m in mine)]:
        mine += found
        rest = [line for line in rest if line not in found]
    return tuple(mine)


def is_named(lines: Sequence[Approver], name: str) -> bool:
    """Whether `name`, as any system calls a person, may be the one who has these lines. Leans to yes: a login `mara` is
    `mara@example.com`."""
    known = {n for line in lines for n in _folded(line.names)}
    known |= {login.partition("=")[2] for line in lines for login in line._logins()}
    short = {n.split("@", 1)[0] for n in known}
    return bool(_meant(name) & (known | short))


def _meant(name: str) -> set[str]:
    """All that a login, an address or a Git author (`Name <address>`) may mean, forges' `123+login@…` among them."""
    whole = name.casefold().strip()
    author = _AUTHOR.fullmatch(whole)
    found = {whole, *(author.groups() if author else ())}
    found |= {n.split("@", 1)[0] for n in found}
    return {part for n in found for part in (n, *n.split("+"))} - {""}


@dataclass(frozen=True)
class SignatureFacts:
    """What an SSH signature says of itself, before anything is verified."""

    key: str
    """Base64 of the public key that it claims to be by."""
    namespace: str


def read_signature(armored: str) -> SignatureFacts:
    """Key and namespace of an armored signature (OpenSSH's PROTOCOL.sshsig). Raises `ValueError` for anything else."""
    found = _ARMOR.fullmatch(armored)
    if found is None:
        raise ValueError("not an armored SSH signature")
    try:
        blob = base64.b64decode("".join(found[1].split()), validate=True)
        if blob[:6] != _MAGIC or struct.unpack_from(">I", blob, 6)[0] != 1:
            raise ValueError("not an SSH signature of version 1")
        key, offset = _string(blob, 10)
        namespace, _ = _string(blob, offset)
        return SignatureFacts(base64.b64encode(key).decode(), namespace.decode())
    except (binascii.Error, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not an SSH signature: {error}") from error


def _read_line(line: str) -> Approver:
    first, *others = line.split(None, 1)
    names, rest = tuple(first.split(",")), "".join(others)
    for name in names:
        if not re.fullmatch(NAME, name):
            raise ValueError(f"{name!r} is no plain name (patterns name nobody)")
    namespaces: tuple[str, ...] = ()
    validity: list[str] = []
    if not _KEY_TYPE.fullmatch(rest.split(None, 1)[0] if rest else ""):
        options = _OPTIONS.match(rest)
        if options is None:
            raise ValueError("a key is missing")
        rest = rest[options.end() :].strip()
        for option in re.findall(r'(?:[^,"]|"[^"]*")+', options[0]):
            key, value = _option(option)
            if key == "namespaces":
                namespaces = tuple(value.split(","))
            else:
                validity.append(f'{key}="{value}"')
    words = rest.split()
    if len(words) < 2:
        raise ValueError("a key is missing")
    key_type, key, *comment = words
    _check_key(key_type, key)
    return Approver(
        names=names,
        key_type=key_type,
        key=key,
        roles=frozenset(role for word in comment for role in _roles(word)),
        accounts=frozenset(a for word in comment for a in _accounts(word)),
        namespaces=namespaces,
        validity=tuple(validity),
    )


def _option(option: str) -> tuple[str, str]:
    found = _OPTION.fullmatch(option)
    if found is None or found[1] not in ("namespaces", "valid-after", "valid-before"):
        raise ValueError(f"the option {option!r} is not taken")
    if not found[2] or (found[1] != "namespaces" and not re.fullmatch(r"\d{8,14}Z?", found[2])):
        raise ValueError(f"the option {option!r} has no value that is understood")
    return found[1], found[2]


def _check_key(key_type: str, key: str) -> None:
    try:
        blob = base64.b64decode(key, validate=True)
        inner, _ = _string(blob, 0)
    except (binascii.Error, struct.error) as error:
        raise ValueError("the key is not base64 of an SSH key") from error
    if not _KEY_TYPE.fullmatch(key_type) or inner.decode(errors="replace") != key_type:
        raise ValueError(f"{key_type!r} is not the key's type")


def _roles(word: str) -> list[str]:
    found = re.fullmatch(r"roles?=(.*)", word)
    if found is None:
        return []
    roles = found[1].split(",")
    for role in roles:
        if not _ROLE.fullmatch(role):
            raise ValueError(f"{role!r} is no role")
    return roles


def _accounts(word: str) -> list[str]:
    found = _ACCOUNT.fullmatch(word)
    if found is None:
        return []
    logins = found[2].split(",")
    for login in logins:
        if not _LOGIN.fullmatch(login):
            raise ValueError(f"{login!r} is no login of {found[1]}")
    return [f"{found[1]}={login}".casefold() for login in logins]


def _moment(value: str) -> datetime | None:
    """A time as ssh-keygen reads it: UTC with a Z, else this machine's zone. None for what it is not."""
    digits = value.removesuffix("Z")
    form = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if form is None:
        return None
    try:
        found = datetime.strptime(digits, form)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if value.endswith("Z") else found.astimezone()


def _string(blob: bytes, offset: int) -> tuple[bytes, int]:
    """A string of SSH's wire format, and where the next field begins."""
    (length,) = struct.unpack_from(">I", blob, offset)
    end = offset + 4 + length
    if end > len(blob):
        raise ValueError("it ends too early")
    return blob[offset + 4 : end], end


def _folded(names: Sequence[str]) -> set[str]:
    return {name.casefold() for name in names}
