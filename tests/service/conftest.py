"""Fixtures for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_cases import IRIS

from service.cli import main
from trials.store import Store


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own settings, and a working directory to spare."""
    for name in ("CONTINUA_STORE", "CONTINUA_DATA", "CONTINUA_DEBUG"):
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
