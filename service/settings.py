"""Where things are, and who said so: the store, the board, the service and its token.

    >>> store_root(None)
    (PosixPath('~/.local/share/continua'), 'default')

Each is said by a flag (`--store`), else the environment (`CONTINUA_STORE`, `CONTINUA_BOARD`, `CONTINUA_URL`), else
`./continua.toml` or `[tool.continua]` in `./pyproject.toml`, else `$XDG_CONFIG_HOME/continua/config.toml`. Where nobody
says, the store is `$XDG_DATA_HOME/continua`, and the board a file in it. A relative path in a file counts from that
file. `continua.toml` and `config.toml` may also hold the table `[tool.continua]`.

The token is a secret, so no flag and no such file may hold it: it is in `CONTINUA_TOKEN`, else in the file that
`CONTINUA_TOKEN_FILE` names, else in `$XDG_CONFIG_HOME/continua/token`. It is never shown. Neither torch nor pyarrow.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from search_spaces.faults import Invalid, unknown

KEYS = {  # what a file may say, and what it must be
    "store": "a directory's path",
    "board": "a board's URL such as redis://127.0.0.1:6379/0",
    "url": "a service's URL such as http://127.0.0.1:8642",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value and where it was said: `--store`, an environment variable, a file, or `default`."""

    value: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A token and where it was found. Only the origin is ever shown."""

    value: str = field(repr=False)
    origin: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting with its origin. `data` is where tasks look for their files after the working directory."""

    store: Setting
    board: Setting
    url: Setting | None = None
    token: Secret | None = None
    data: Setting | None = None

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, origin) of every setting that is there, without secrets."""
        from service.board.rules import masked

        secret = self.token and Setting(value="(hidden)", origin=self.token.origin)
        board = Setting(value=masked(self.board.value), origin=self.board.origin)
        pairs = [("store", self.store), ("board", board), ("url", self.url), ("token", secret), ("data", self.data)]
        return [(name, setting.value, setting.origin) for name, setting in pairs if setting is not None]


def settings(flag: str | None = None) -> Settings:
    """The settings as they hold in this process. Raises `Invalid` as those below do."""
    root, origin = store_root(flag)
    data = os.environ.get("CONTINUA_DATA")
    return Settings(
        store=Setting(value=str(root), origin=origin),
        board=board_url(root),
        url=service_url(),
        token=token(),
        data=Setting(value=data, origin="CONTINUA_DATA") if data else None,
    )


def store_root(flag: str | None) -> tuple[Path, str]:
    """The store's directory and who says so. Files are read only where the flag and the environment are silent."""
    fallback = str(_xdg("XDG_DATA_HOME", ".local/share") / "continua")
    text, origin, base = next(_said("store", flag), (fallback, "default", Path.cwd()))
    if not text.strip():
        raise Invalid([f"store ({origin}): must be a directory's path, but got {text!r}."])
    if "://" in text:
        raise Invalid([f"store ({origin}): must be a directory, but got the URL {text!r}; URLs are not known yet."])
    try:
        path = base / Path(text).expanduser()
        taken = path.exists() and not path.is_dir()
    except (RuntimeError, OSError, ValueError) as error:
        raise Invalid([f"store ({origin}): must be a directory, but got {text!r}: {error}."]) from None
    if taken:
        raise Invalid([f"store ({origin}): must be a directory, but {str(path)!r} is a file; name another."])
    return path, origin


def board_url(root: Path, flag: str | None = None) -> Setting:
    """The board's URL; where nobody says, a file in the store."""
    for text, origin, _ in _said("board", flag):
        return Setting(value=text, origin=origin)
    return Setting(value=f"sqlite://{root.absolute()}/board.sqlite", origin="default")


def service_url(flag: str | None = None) -> Setting | None:
    """The service's URL, without a slash at its end; None where nobody says.

    Raises:
        Invalid: when it is no URL that we can speak to.
    """
    for text, origin, _ in _said("url", flag):
        try:
            parts = urlsplit(text.strip())
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise Invalid([f"url ({origin}): must be {KEYS['url']}, but got {text.rpartition('@')[2]!r}."])
        if "@" in parts.netloc or parts.query or parts.fragment:
            rule = "must have no password, `?` or `#`"
            raise Invalid([f"url ({origin}): {rule}, but has; a token goes into CONTINUA_TOKEN."])
        return Setting(value=text.strip().rstrip("/"), origin=origin)
    return None


def started_url(root: Path) -> Setting | None:
    """The URL of the service that `continua up` started on a store and has not ended; None without one."""
    file = root / "server.json"
    try:
        url = json.loads(file.read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Setting(value=str(url), origin=str(file))


def by_the_user(url: Setting) -> bool:
    """Whether the user named that service, or it is on this machine: a file that came with a project may name any."""
    host = urlsplit(url.value).hostname or ""
    own = url.origin in ("--url", "CONTINUA_URL", str(_config()))
    return own or host == "localhost" or host == "::1" or host.startswith("127.")


def token() -> Secret | None:
    """The token for the service; None where there is none.

    Raises:
        Invalid: when a file that should hold it cannot be read, is open to others, or what it holds is no token.
    """
    if text := os.environ.get("CONTINUA_TOKEN"):
        return _secret(text, "CONTINUA_TOKEN")
    if named := os.environ.get("CONTINUA_TOKEN_FILE"):
        return _secret(_read_token(Path(named).expanduser(), f"CONTINUA_TOKEN_FILE ({named})"), named)
    file = token_file()
    if not file.exists():
        return None
    if (mode := file.stat().st_mode & 0o777) & 0o077:
        raise Invalid([f"token ({file}): must be its owner's alone (0600), but is {mode:04o}; run: chmod 600 {file}"])
    return _secret(_read_token(file, str(file)), str(file))


def token_file() -> Path:
    """Where the user's own token stands."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "continua" / "token"


def _read_token(file: Path, where: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise Invalid([f"token: {where} must be a file that holds it, but cannot be read: {reason}."]) from None


def _secret(text: str, origin: str) -> Secret:
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise Invalid([f"token ({origin}): must be one word of letters, digits and signs, but is not; add a new one."])
    return Secret(value=text, origin=origin)


# -- who says what -----------------------------------------------------------------------------------------------------


def _said(name: str, flag: str | None) -> Iterator[tuple[str, str, Path]]:
    """What each source says of a setting, first to last: the text, its origin, what a relative path counts from."""
    here, variable = Path.cwd(), f"CONTINUA_{name.upper()}"
    if flag is not None:
        yield flag, f"--{name}", here
    if text := os.environ.get(variable):
        yield text, variable, here
    for file in (here / "continua.toml", here / "pyproject.toml", _config()):
        if (value := _table(file).get(name)) is not None:
            yield value, str(file), file.parent


def _config() -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config") / "continua" / "config.toml"


def _xdg(variable: str, fallback: str) -> Path:
    given = Path(os.environ.get(variable, ""))
    return given if given.is_absolute() else Path("~").expanduser() / fallback  # relative ones do not count (XDG)


def _table(file: Path) -> dict[str, str]:
    """What a file says of us; nothing where it is not there."""
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Invalid([f"{file}: must be TOML, but: {error}; correct it."]) from None
    table = data.get("tool", {})
    table = table.get("continua") if isinstance(table, dict) else None
    where = f"{file}: [tool.continua]"
    if table is None:
        if file.name == "pyproject.toml":
            return {}
        table, where = {key: value for key, value in data.items() if key != "tool"}, str(file)
    if not isinstance(table, dict):
        raise Invalid([f"{where}: must be a table such as [tool.continua], but got {table!r}."])
    if "token" in table:
        raise Invalid([f"{where} token: no file that others may read holds a secret; see `continua config show`."])
    faults = [unknown(where, key, KEYS) for key in table if key not in KEYS]
    faults += [
        f"{where} {key}: must be {what}, but got {table[key]!r}."
        for key, what in KEYS.items()
        if key in table and (not isinstance(table[key], str) or not table[key])
    ]
    if faults:
        raise Invalid(faults)
    return table
