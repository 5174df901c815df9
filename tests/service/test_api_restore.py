"""A board that was wiped, lost or replaced under a running server has every search of the store again before long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from api_cases import SPEC, Api, api_at
from board_cases import Rig, SQLiteRig

from service.api import desk
from service.goal import Edit, change
from trials import layout


@pytest.fixture
def api(tmp_path: Path, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """Over a board of either kind."""
    monkeypatch.setattr(desk, "LOOK", 0.02)
    with api_at(tmp_path / "api") as found:
        found.board.close()
        found.board._board = rig.board
        yield found


def lose(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def comes(wanted: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not wanted():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_a_wiped_board_is_noticed_by_nobody_asking(api: Api, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "RESTORE", 0.05)
    with api.served():
        ids = {api.submit(), api.submit()}
        change(api.store.search(min(ids)), Edit(verb="pause"))  # by somebody beside the server
        for _ in range(2):
            assert comes(lambda: {job.id: job.status for job in rig.board.list()}.get(min(ids)) == "paused")
            assert {job.id for job in rig.board.list()} == ids
            rig.empty()


def test_a_search_that_the_board_does_not_know_has_it_restored(api: Api, rig: Rig) -> None:
    with api.served() as server, api.http(server) as client:
        one, two = api.submit(), api.submit()
        assert comes(lambda: not server._app.state.desk.owing)
        rig.empty()
        time.sleep(0.2)
        assert rig.board.list() == []  # it is not time yet to compare the two
        assert client.get(f"/v1/searches/{one}").json()["state"] == "queued"
        assert comes(lambda: {job.id for job in rig.board.list()} == {one, two})
        assert rig.board.claim("runner", ttl=60.0) is not None


def test_a_search_that_cannot_be_posted_is_not_tried_for_ever(
    api: Api, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    api.submit()
    broken = api.store.create("broken-1", {"name": "x", "spec": SPEC})
    layout.spec(broken.path).write_text("{")
    found = api.app.state.desk
    for _ in range(3):
        found.restore()
        assert found.job("broken-1") is None
        assert not found.owing
    assert sum("broken-1" in record.getMessage() for record in caplog.records) == 1


def test_a_file_that_is_lost_or_replaced_is_the_board_no_more(tmp_path: Path) -> None:
    rig = SQLiteRig(tmp_path / "board.sqlite")
    with api_at(tmp_path / "api") as api:
        api.board.close()
        api.board._board = rig.board
        found = api.app.state.desk
        one = api.submit()
        lose(rig.path)
        assert found.job(one) is None
        assert found.owing
        assert found.restore() == 1
        other = rig.again()  # what another process sees
        assert [job.id for job in other.list()] == [one]
        lose(rig.path)
        rig.path.write_bytes(b"no board" * 1000)
        assert found.job(one) is None
        ready = api.client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["board"]) == (503, "cannot be used")
        answer = api.client.post("/v1/searches", json={"spec": SPEC})
        assert answer.status_code == 201
        assert api.client.get(f"/v1/searches/{one}").status_code == 200
        lose(rig.path)
        assert found.restore() == 2
        assert {job.id for job in rig.again().list()} == {one, answer.json()["search_id"]}
    rig.close()
