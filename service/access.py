"""Who may do what: tokens with a scope, kept as digests beside the server and in the clear only with their owner.

    >>> token = add("ada", "submit")                    # shown once; `tokens.json` keeps its sha256
    >>> Access(server_file()).who(token).scope
    'submit'

Scopes: `read` sees everything but code, `submit` also submits searches and code and changes its own searches, `admin`
may do all. A submit token is a shell on the workers: running submitted code is what they are for.

Server side the tokens stand in `$XDG_CONFIG_HOME/continua/tokens.json`, client side one stands in
`$XDG_CONFIG_HOME/continua/token`; both belong to their user alone (mode 0600), or are refused. A running server sees a
change of the file at the next request.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from search_spaces.faults import Invalid, unknown
from trials.segments import write_bytes

SCOPES = ("read", "submit", "admin")  # each may do what those before it may
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_FIRST = "first"


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token as the server knows it. `created` is in Unix seconds."""

    name: str
    scope: str
    owner: str
    sha256: str
    created: float

    def allows(self, scope: str) -> bool:
        """Whether it may do what needs `scope`."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


def config_directory() -> Path:
    """`$XDG_CONFIG_HOME/continua`, by default `~/.config/continua`."""
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (given if given.is_absolute() else Path("~/.config").expanduser()) / "continua"


def server_file() -> Path:
    """Where a server's tokens stand."""
    return config_directory() / "tokens.json"


def client_file() -> Path:
    """Where a user's own token stands."""
    return config_directory() / "token"


# -- changing them -----------------------------------------------------------------------------------------------------


def add(name: str, scope: str, *, owner: str | None = None, path: Path | None = None) -> str:
    """Makes a token and returns it; it cannot be shown again. `owner` (by default the name) owns what it submits.

    Raises:
        Invalid: when the name is taken or none, or the scope unknown.
    """
    path, owner = path or server_file(), owner or name
    rule = "must be letters, digits, `_`, `.`, `@` or `-`, 64 at most"
    pairs = [("name", name)] + ([("owner", owner)] if owner != name else [])
    faults = [f"token {what}: {rule}, but got {text!r}." for what, text in pairs if not _NAME.fullmatch(text)]
    if scope not in SCOPES:
        faults.append(unknown("token scope", scope, SCOPES, "scope"))
    with _changing(path):
        known = tokens(path)
        if any(token.name == name for token in known):
            faults.append(f"token name: must be new, but {name!r} is there; revoke it first, or choose another.")
        if faults:
            raise Invalid(faults)
        plain = secrets.token_urlsafe(32)
        made = Token(name=name, scope=scope, owner=owner, sha256=_digest(plain), created=time.time())
        _write(path, [*known, made])
    return plain


def revoke(name: str, *, path: Path | None = None) -> Token:
    """Takes a token away. Raises `Invalid` where there is none of that name."""
    path = path or server_file()
    with _changing(path):
        known = tokens(path)
        gone = [token for token in known if token.name == name]
        if not gone:
            raise Invalid([unknown("token", name, [token.name for token in known], "token")])
        _write(path, [token for token in known if token.name != name])
    return gone[0]


def tokens(path: Path | None = None) -> list[Token]:
    """Every token, in the order of making.

    Raises:
        Invalid: when the file is not ours, open to others, or not what was written.
    """
    path = path or server_file()
    text = private_text(path)
    try:
        return [] if text is None else [_token(entry) for entry in json.loads(text)["tokens"]]
    except (ValueError, TypeError, KeyError) as error:
        raise Invalid([f"{path}: must hold tokens, but got {error!r}; move it away and add them again."]) from None


def first_token(*, server: Path | None = None, client: Path | None = None) -> Path | None:
    """At the first start: makes an admin token for the user who starts the server, and writes it where their client
    looks. Returns that file; None where there are tokens already.

    Raises:
        Invalid: when the client's file is there, but for no server of ours.
    """
    server, client = server or server_file(), client or client_file()
    if tokens(server):
        return None
    if client.exists():
        rule = "there are no tokens for the server yet"
        raise Invalid(
            [f"token: {rule}, but {client} holds one; move it away, or add tokens with `continua token add`."]
        )
    plain = add(_FIRST, "admin", owner=user(), path=server)
    client.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_private(client, plain + "\n")
    return client


def user() -> str:
    """The name of the user we run as, fit to be an owner."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = str(os.getuid())
    return re.sub(r"[^A-Za-z0-9_.@-]", "-", name).lstrip("_.@-")[:64] or "user"


# -- asking them -------------------------------------------------------------------------------------------------------


class Access:
    """The tokens of a running server: read again whenever the file changes. Safe from many threads."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or server_file()
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int, int] | None = None
        self._known: list[Token] = []

    def known(self) -> list[Token]:
        """Every token as the file has them now. Raises `Invalid` when it cannot be trusted: then nobody gets in."""
        try:
            facts = self.path.stat()
            stamp = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        except FileNotFoundError:
            return []
        with self._lock:
            if stamp != self._stamp:
                self._known = tokens(self.path)
                self._stamp = stamp
            return self._known

    def who(self, plain: str) -> Token | None:
        """The token that this is, or None. Takes as long whichever it is, and whether it is one."""
        given, found = _digest(plain).encode(), None
        for token in self.known():
            if hmac.compare_digest(given, token.sha256.encode()):
                found = token
        return found


def check_binding(host: str, known: Sequence[Token]) -> None:
    """Raises `Invalid` where others than this machine could reach a server that has no tokens."""
    if not known and not is_loopback(host):
        way = "run `continua token add NAME --scope submit` first, or bind to 127.0.0.1"
        raise Invalid([f"host: must be a loopback address while there are no tokens, but got {host!r}; {way}."])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# -- files of one's own ------------------------------------------------------------------------------------------------


def private_text(path: Path) -> str | None:
    """What stands in a file that is its user's alone; None where there is none.

    Raises:
        Invalid: when it is open to others, another user's, not a file, or cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Invalid([f"{path}: cannot be read: {error.strerror}."]) from None
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        os.close(handle)
        raise Invalid([f"{path}: must be a file; move it away."])
    with open(handle, "rb") as file:
        if facts.st_uid != os.getuid():
            raise Invalid([f"{path}: must belong to the user who reads it, but is user {facts.st_uid}'s; chown it."])
        if facts.st_mode & 0o077:
            mode = stat.S_IMODE(facts.st_mode)
            raise Invalid([f"{path}: must be its owner's alone (0600), but is {mode:04o}; run: chmod 600 {path}"])
        try:
            return file.read().decode()
        except ValueError as error:
            raise Invalid([f"{path}: must be text, but: {error}."]) from None


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    """One change at a time, whichever process makes it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: Path, known: Sequence[Token]) -> None:
    _write_private(path, json.dumps({"tokens": [asdict(token) for token in known]}, indent=2) + "\n")


def _write_private(path: Path, text: str) -> None:
    before = os.umask(0o077)  # no instant in which others may read it
    try:
        write_bytes(path, text.encode(), replace=True)
    finally:
        os.umask(before)


def _token(entry: dict[str, object]) -> Token:
    token = Token(**entry)  # type: ignore[arg-type]
    if token.scope not in SCOPES or not isinstance(token.sha256, str) or not isinstance(token.name, str):
        raise ValueError(f"a token of scope {token.scope!r}")
    return token


def _digest(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8", "surrogateescape")).hexdigest()
