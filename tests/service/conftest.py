"""Fixtures for tests of the command line, and of boards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from board_cases import RedisRig, RedisServer, Rig, SQLiteRig, running_server
from cli_cases import IRIS

from service.cli import main
from trials.store import Store


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own settings, and a working directory to spare."""
    service = ("CONTINUA_BOARD", "CONTINUA_URL", "CONTINUA_TOKEN", "CONTINUA_TOKEN_FILE")
    for name in ("CONTINUA_STORE", "CONTINUA_DATA", "CONTINUA_DEBUG", *service):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with one complete search, and the search's id; not to be written to."""
    path = tmp_path_factory.mktemp("done")
    (path / "iris.yaml").write_text(IRIS)
    store = path / "store"
    assert main(["run", str(path / "iris.yaml"), "--store", str(store), "--executor", "here", "-q"]) == 0
    (search_id,) = Store.open_for_reading(store).searches()
    return store, search_id


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real server, which keeps nothing on disk; `url` is where it is. One a module: flush what you leave."""
    with running_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """An empty board of either kind, and its clock."""
    if request.param == "sqlite":
        found: Rig = SQLiteRig(tmp_path / "board.sqlite")
    else:
        found = RedisRig(request.getfixturevalue("redis_server"))
    yield found
    found.close()
