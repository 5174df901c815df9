"""The server itself: alive, ready or degraded, measured, described, bound where it may be, and ended by a signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_cases import Api, Client, api_at, run_by_hand

from search_spaces.faults import Invalid
from service.access import Access, add
from service.api import system
from service.api.serve import make_server
from service.api.system import _board_check
from trials.records import Ending
from trials.store import Store


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_at(tmp_path) as found:
        yield found


def test_health_asks_nothing_of_anyone(api: Api) -> None:
    api.board.plugged = False
    answer = Client(api.app, {}).get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_readiness_says_what_does_not_work(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Client(api.app, {})
    api.board._board.warnings.append("the board keeps nothing on a disk")
    ready = nobody.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "checks": {"board": "ok", "store": "ok"},
        "warnings": ["the board keeps nothing on a disk"],
    }
    api.board.plugged = False
    degraded = nobody.get("/readyz")
    assert (degraded.status_code, degraded.json()["status"]) == (503, "degraded")
    assert degraded.json()["checks"] == {"board": "does not answer", "store": "ok"}
    api.board.plugged = True

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert nobody.get("/readyz").status_code == 200, "the store was written a moment ago; anybody may ask"
        patch.setattr(system, "SERVES", 0.0)
        full = nobody.get("/readyz")
    assert full.json()["checks"]["store"] == "cannot be written: No space left on device"
    assert str(api.path) not in full.text
    assert nobody.get("/readyz").status_code == 200
    assert sorted(path.name for path in api.store.root.iterdir()) == ["searches"]


def test_measures_count_what_is_there(api: Api) -> None:
    one = api.submit()
    api.submit()
    assert api.board.claim("r", ttl=60.0) is not None
    run_by_hand(api.store.search(one), [(Ending.COMPLETE, 0.5), (Ending.NAN, None), (Ending.COMPLETE, 0.25)], end="")
    api.client.get("/v1/searches/none")
    api.app.state.desk.changed()
    lines = api.as_("read").get("/metrics").text.splitlines()
    for line in (
        'continua_searches{state="queued"} 1.0',
        'continua_searches{state="running"} 1.0',
        'continua_trials{ending="complete"} 2.0',
        'continua_trials{ending="nan"} 1.0',
        "continua_queue_length 1.0",
        "continua_live_leases 1.0",
        "continua_watchers 0.0",
        "continua_board_up 1.0",
        'continua_requests_total{method="POST",route="/v1/searches",status="201"} 2.0',
        'continua_requests_total{method="GET",route="/v1/searches/{search_id}",status="404"} 1.0',
        'continua_request_seconds_count{route="/v1/searches"} 2.0',
    ):
        assert line in lines
    assert not any("none" in line for line in lines if 'route="/v1' in line)


def test_a_board_that_is_back_is_told_what_it_missed(api: Api) -> None:
    desk = api.app.state.desk
    desk.restore()
    assert not desk.owing
    api.board.plugged = False
    assert _board_check(desk) == "does not answer"
    assert desk.owing


# -- running -----------------------------------------------------------------------------------------------------------


def test_only_loopback_is_bound_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="continua token add"):
        make_server(
            tmp_path / "s", f"sqlite:///{tmp_path}/b", host="0.0.0.0", port=0, access=Access(tmp_path / "t.json")
        )


def test_an_address_that_cannot_be_bound_is_said_so(api: Api) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Invalid, match=f"127.0.0.1:{port} cannot be bound"):
            make_server(api.store, api.board, port=port, access=api.access)
    for host in ("no.such.host.invalid", "203.0.113.7"):
        with pytest.raises(Invalid, match=r"host:|cannot be bound"):
            make_server(api.store, api.board, host=host, port=0, access=api.access)


@pytest.mark.slow
def test_the_first_start_makes_a_token_and_a_signal_ends_it(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom service.api.serve import serve\n"
        "serve(sys.argv[1], 'sqlite:///' + sys.argv[2], port=0, ready=lambda url: print(url, flush=True))\n"
        "print('closed')\n"
    )
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    argv = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "store"), str(tmp_path / "board.sqlite")]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        token = (tmp_path / "config" / "continua" / "token").read_text().strip()
        answer = httpx.get(f"{url}/v1/searches", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()) == (200, {"items": [], "next": None})
        assert "server" not in answer.headers
        server.send_signal(signal.SIGTERM)
        out, said = server.communicate(timeout=60)
    assert (server.returncode, out.strip()) == (0, "closed"), said
    assert "Traceback" not in said


def test_two_servers_share_a_store(api: Api, tmp_path: Path) -> None:
    add("both", "submit", path=api.tokens)
    search_id = api.submit()
    with api.served() as one, api.served() as two:
        for server in (one, two):
            with api.http(server) as client:
                assert client.get(f"/v1/searches/{search_id}").json()["state"] == "queued"
        with api.http(one) as client:
            client.patch(f"/v1/searches/{search_id}/goal", json={"verb": "pause"})
        with api.http(two) as client:
            assert client.get(f"/v1/searches/{search_id}").json()["state"] == "paused"
    assert Store(api.store.root).searches() == [search_id]
