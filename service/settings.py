"""Where the store is, and who said so.

    >>> store_root(None)
    (PosixPath('~/.local/share/continua'), 'default')

Where the store is: `--store`, else `CONTINUA_STORE`, else `store` in `./continua.toml` or under `[tool.continua]` in
`./pyproject.toml`, else in `$XDG_CONFIG_HOME/continua/config.toml`, else `$XDG_DATA_HOME/continua`. A relative path in
a file counts from that file. `continua.toml` and `config.toml` may also hold the table `[tool.continua]`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from search_spaces.faults import Invalid, unknown


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value and where it was said: `--store`, an environment variable, a file, or `default`."""

    value: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting with its origin. `data` is where tasks look for their files after the working directory."""

    store: Setting
    data: Setting | None = None

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, origin) of every setting that is there."""
        pairs = [("store", self.store), ("data", self.data)]
        return [(name, setting.value, setting.origin) for name, setting in pairs if setting is not None]


def settings(flag: str | None = None) -> Settings:
    """The settings as they hold in this process. Raises `Invalid` as `store_root` does."""
    root, origin = store_root(flag)
    data = os.environ.get("CONTINUA_DATA")
    return Settings(
        store=Setting(value=str(root), origin=origin),
        data=Setting(value=data, origin="CONTINUA_DATA") if data else None,
    )


def store_root(flag: str | None) -> tuple[Path, str]:
    """The store's directory and who says so. Files are read only where the flag and the environment are silent."""
    for text, origin, base in _said(flag):
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
    raise AssertionError("the default comes last")


def _said(flag: str | None) -> Iterator[tuple[str, str, Path]]:
    """What each source says of the store, first to last: the text, its origin, what a relative path counts from."""
    here = Path.cwd()
    if flag is not None:
        yield flag, "--store", here
    if text := os.environ.get("CONTINUA_STORE"):
        yield text, "CONTINUA_STORE", here
    config = _xdg("XDG_CONFIG_HOME", ".config") / "continua" / "config.toml"
    for file in (here / "continua.toml", here / "pyproject.toml", config):
        if (text := _toml_store(file)) is not None:
            yield text, str(file), file.parent
    yield str(_xdg("XDG_DATA_HOME", ".local/share") / "continua"), "default", here


def _xdg(variable: str, fallback: str) -> Path:
    given = Path(os.environ.get(variable, ""))
    return given if given.is_absolute() else Path("~").expanduser() / fallback  # relative ones do not count (XDG)


def _toml_store(file: Path) -> str | None:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Invalid([f"{file}: must be TOML, but: {error}; correct it."]) from None
    table = data.get("tool", {})
    table = table.get("continua") if isinstance(table, dict) else None
    where = f"{file}: [tool.continua]"
    if table is None:
        if file.name == "pyproject.toml":
            return None
        table, where = {key: value for key, value in data.items() if key != "tool"}, str(file)
    if not isinstance(table, dict):
        raise Invalid([f"{where}: must be a table such as [tool.continua], but got {table!r}."])
    faults = [unknown(where, key, ("store",)) for key in table if key != "store"]
    store = table.get("store")
    if "store" in table and (not isinstance(store, str) or not store):
        faults.append(f"{where} store: must be a directory's path, but got {store!r}.")
    if faults:
        raise Invalid(faults)
    return store
