"""Boards under faults: servers killed, wiped, stopped, restored; replies lost; processes killed; wrong files."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from board_cases import PERSISTENT, RedisServer, SQLiteRig, job, running_server, sound

from search_spaces.faults import Invalid
from service.board import LeaseLost, Unreachable, open_board
from service.board.rebuild import rebuild
from service.board.redis import RedisBoard
from service.board.rules import masked
from service.board.sqlite import SQLiteBoard
from service.goal import Edit, change
from trials.store import NotFound, Store

TTL = 60.0
ROOT = Path(__file__).parents[2]
DOCUMENT = {"name": "s", "spec": {"budget": {"trials": 4}, "resources": {"workers": 2}}, "submitted": True}


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


def again(call: Callable[[], Any]) -> Any:
    """What a patient caller gets."""
    until = time.monotonic() + 60
    while True:
        try:
            return call()
        except Unreachable:
            assert time.monotonic() < until
            time.sleep(0.02)


# -- a server that dies ------------------------------------------------------------------------------------------------


def test_nothing_acknowledged_is_lost_when_a_persistent_server_is_killed(tmp_path: Path) -> None:
    with running_server(tmp_path, *PERSISTENT) as server, contextlib.closing(RedisBoard(server.url)) as board:
        assert board.warnings == []
        acknowledged: dict[str, int] = {}
        over = threading.Event()

        def work(me: int) -> None:
            n = 0
            while not over.is_set():
                again(lambda n=n: board.post(job(f"s{me}-{n}")))
                n += 1
                got = again(lambda: board.claim(f"r{me}", TTL))
                if got is None:  # one that was not answered in all its tries took what another posted
                    continue
                again(lambda got=got: board.renew(got.id, got.epoch, TTL, {"by": me}))
                acknowledged[got.id] = got.epoch

        with ThreadPoolExecutor(3) as pool:
            runs = [pool.submit(work, me) for me in range(3)]
            for _ in range(3):
                time.sleep(random.uniform(0.05, 0.25))
                server.kill()
                server.start()
            time.sleep(0.1)
            over.set()
            for run in runs:
                run.result(timeout=60)
        assert len(acknowledged) > 10
        there = {found.id: found for found in board.list(limit=100_000)}
        assert {id: (there[id].epoch, there[id].beat > 0) for id in acknowledged} == {
            id: (epoch, True) for id, epoch in acknowledged.items()
        }
        assert all(there[id].leased for id in acknowledged), "a restart ends no lease"


def test_a_server_that_is_stopped_is_unreachable_in_time_and_comes_back(redis_server: RedisServer, url: str) -> None:
    board = RedisBoard(url, timeout=0.2, retries=1)
    board.post(job("a"))
    redis_server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"must answer within 0\.2 s.*CONTINUA_BOARD"):
            board.get("a")
        assert time.monotonic() - began < 10, "a guard: two tries of 0.2 s"
        with pytest.raises(Unreachable):
            RedisBoard(url, timeout=0.2, retries=0)
    finally:
        redis_server.signal(signal.SIGCONT)
    assert again(lambda: board.get("a")).id == "a"
    board.close()


def test_where_nobody_listens_the_board_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://:hush@127.0.0.1:{free.getsockname()[1]}/0"
    with pytest.raises(Unreachable, match="start it") as caught:
        RedisBoard(url, retries=1)
    assert "hush" not in str(caught.value)


# -- a server that forgets ---------------------------------------------------------------------------------------------


def searches(store: Store, count: int) -> None:
    for n in range(count):
        store.create(f"s{n}", {**DOCUMENT, "owner": f"o{n % 2}", "priority": 20 + n})


def test_a_wiped_board_is_rebuilt_and_a_zombie_stays_out(redis_server: RedisServer, url: str, store: Store) -> None:
    board = RedisBoard(url)
    searches(store, 3)
    assert rebuild(store, board) == 3
    held = [board.claim("r", TTL) for _ in range(3)]
    with redis_server.client() as client:
        client.flushall()
    for lease in held:
        assert lease is not None
        with pytest.raises(NotFound):
            board.renew(lease.id, lease.epoch, TTL)
    assert rebuild(store, board) == 3
    assert rebuild(store, board) == 0
    for lease in held:
        assert lease is not None
        with pytest.raises(LeaseLost):
            board.renew(lease.id, lease.epoch, TTL)
        fresh = board.claim("s", TTL)
        assert fresh is not None
        assert (fresh.id, fresh.owner, fresh.priority) == (lease.id, lease.owner, lease.priority)
        assert fresh.epoch > lease.epoch
        with pytest.raises(LeaseLost):
            board.finish(lease.id, lease.epoch, over="complete")
    board.close()


def test_an_older_snapshot_is_brought_up_to_the_store(tmp_path: Path, store: Store) -> None:
    with running_server(tmp_path) as server, contextlib.closing(RedisBoard(server.url)) as board:
        searches(store, 2)
        rebuild(store, board)
        with server.client() as client:
            client.save()
        shutil.copy(tmp_path / "dump.rdb", tmp_path / "old")
        change(store.search("s0"), Edit(verb="pause"))
        change(store.search("s0"), Edit(verb="scale", workers=5))
        board.control("s0", goal=2, wanted="pause", workers=5)
        store.create("s2", {**DOCUMENT, "priority": 1})
        rebuild(store, board)
        zombies = [board.claim("r", TTL), board.claim("r", TTL)]
        server.kill()
        shutil.copy(tmp_path / "old", tmp_path / "dump.rdb")
        server.start()
        assert again(lambda: board.get("s0")).goal == 0
        assert rebuild(store, board) == 2
        told = board.get("s0")
        assert (told.goal, told.status, told.workers) == (2, "paused", 5)
        for zombie in zombies:
            assert zombie is not None
            with pytest.raises(LeaseLost):
                board.renew(zombie.id, zombie.epoch, TTL)
            fresh = board.claim("s", TTL)
            assert fresh is not None
            assert (fresh.id, fresh.epoch > zombie.epoch) == (zombie.id, True)


def test_a_lost_file_is_rebuilt_with_epochs_above_those_of_before(tmp_path: Path, store: Store) -> None:
    searches(store, 1)
    epochs = []
    for n in range(2):
        board = SQLiteBoard(tmp_path / f"board-{n}.sqlite")
        assert rebuild(store, board) == 1
        got = board.claim("r", TTL)
        assert got is not None
        epochs.append(got.epoch)
        board.close()
    assert epochs[0] < epochs[1]


# -- replies that are lost ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def proxy(port: int) -> Iterator[tuple[int, list[int]]]:
    """A port that leads to `port`; while the list holds a number n above 0, the n-th reply from now is dropped, and
    its connection with it."""
    drop = [0]
    server = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", port)) as far, contextlib.suppress(OSError):
            while request := near.recv(1 << 20):
                far.sendall(request)
                reply = far.recv(1 << 20)
                drop[0] -= 1
                if drop[0] == 0:
                    return
                near.sendall(reply)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=(server.accept()[0],)))
                threads[-1].start()

    door = threading.Thread(target=accept)
    door.start()
    try:
        yield server.getsockname()[1], drop
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for thread in [door, *threads]:
            thread.join()


def test_a_verb_whose_reply_was_lost_takes_effect_once(redis_server: RedisServer, url: str) -> None:
    with proxy(redis_server.port) as (port, drop), contextlib.closing(RedisBoard(f"redis://127.0.0.1:{port}")) as board:
        for name in "abc":
            board.post(job(name))
        for verb in ("claim", "finish", "fail"):  # the scripts are known to the server: one reply a verb
            held = board.claim("warm", TTL)
            assert held is not None
            board.fail(held.id, held.epoch) if verb != "finish" else board.finish(held.id, held.epoch, goal=0)
        drop[0] = 1
        got = board.claim("r", TTL)
        assert got is not None
        assert drop[0] < 0, "a reply was dropped"
        assert [found.id for found in board.list(statuses=["running"])] == [got.id], "not a second one"
        drop[0] = 1
        failed = board.fail(got.id, got.epoch)
        assert (drop[0] < 0, failed.failures) == (True, board.get(got.id).failures)
        assert failed.failures == got.failures + 1
        got = board.claim("r", TTL)
        assert got is not None
        drop[0] = 1
        assert board.finish(got.id, got.epoch, over="complete").status == "complete"
        assert drop[0] < 0
        with pytest.raises(LeaseLost):  # another finishing is another one
            board.finish(got.id, got.epoch, over="complete")


# -- servers that will not do, or of which an operator should know -----------------------------------------------------


def test_a_server_that_keeps_nothing_is_warned_of_loudly(redis_server: RedisServer, url: str) -> None:
    with contextlib.closing(open_board(url)) as board:
        (warning,) = board.warnings
        assert "KEEPS NOTHING ON DISK" in warning
        assert "appendonly yes" in warning
    with redis_server.client() as client:
        client.config_set("save", "60 1")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with contextlib.closing(open_board(url)) as board:
                (warning,) = board.warnings
                assert "noeviction" in warning
        finally:
            client.config_set("save", "")
            client.config_set("maxmemory-policy", "noeviction")


def test_a_managed_server_that_forbids_config_is_warned_of_mildly(redis_server: RedisServer, url: str) -> None:
    with redis_server.client() as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=["-config"]
        )
        managed = url.replace("redis://", "redis://app:pw@")
        with contextlib.closing(open_board(managed)) as board:
            (warning,) = board.warnings
            assert "does not say" in warning
            assert "pw" not in warning
            board.post(job("a"))
        client.acl_deluser("app")


@pytest.mark.slow
def test_a_password_is_in_no_error(tmp_path: Path) -> None:
    with running_server(tmp_path, "--requirepass", "right") as server:
        host = f"127.0.0.1:{server.port}"
        RedisBoard(f"redis://:right@{host}/0").close()
        for url in (f"redis://:hush@{host}/0", f"redis://ada:hush@{host}/0", f"redis://{host}/0?password=hush"):
            with pytest.raises(Invalid, match=f"redis://{host}/0 must let us in.*CONTINUA_BOARD") as caught:
                RedisBoard(url)
            assert "hush" not in str(caught.value)
        with pytest.raises(Invalid, match="must let us in"):
            RedisBoard(f"redis://{host}/0")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hush/hush@host:6379/0",
        "redis://ada:hush@host:port/0",
        "redis://:1?hush@host:6379/0",
        "redis://:1#hush@host:6379/0",
        "rediss://:hush@host/0?socket_timeout=hush",
        "memcached://ada:hush@host",
        "redis:ada:hush@host",
        "sqlite://ada:hush@relative.sqlite",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(Invalid, match="board: must be") as caught:
        open_board(url)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_masked_url_says_where_and_nothing_else() -> None:
    assert masked("rediss://ada:pw@board.internal:6380/2?password=x") == "rediss://board.internal:6380/2"
    assert masked("unix://ada:pw@/run/redis.sock?db=1") == "unix:///run/redis.sock"
    assert masked("sqlite:///var/board.sqlite") == "sqlite:///var/board.sqlite"


def test_a_server_that_is_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis.Redis, "info", lambda self: {"redis_version": "6.0.16", "aof_enabled": 1})
    with pytest.raises(Invalid, match=r"Redis 6\.2 or later, or Valkey, but got Redis 6\.0\.16"):
        RedisBoard(url)
    monkeypatch.setattr(redis.Redis, "info", lambda self: {"redis_version": "6.2.0", "aof_enabled": 1})
    RedisBoard(url).close()


def test_a_server_that_refuses_to_write_is_unreachable(redis_server: RedisServer, url: str) -> None:
    with contextlib.closing(RedisBoard(url, retries=0)) as board, redis_server.client() as client:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(Unreachable, match="maxmemory"):
                board.post(job("a"))
        finally:
            client.config_set("maxmemory", "0")
        with pytest.raises(NotFound):
            board.get("a")


# -- a file ------------------------------------------------------------------------------------------------------------


def test_a_restart_of_the_machine_ends_leases_and_waiting(tmp_path: Path) -> None:
    rig = SQLiteRig(tmp_path / "board.sqlite")
    rig.board.post(job("a"))
    rig.board.post(job("b", waits=500.0))
    held = rig.board.claim("r", 500.0)
    assert held is not None
    rig.boot, rig.now = "boot-2", 1.0  # the clock begins anew, far below the ends of before
    assert {found.status for found in rig.board.list()} == {"queued"}
    with pytest.raises(LeaseLost):
        rig.board.renew("a", held.epoch, TTL)
    assert {found.id for found in (rig.board.claim("r", TTL), rig.board.claim("r", TTL)) if found} == {"a", "b"}
    rig.close()


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_setting_the_clock_changes_no_lease_and_no_order_of_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    board = SQLiteBoard(tmp_path / "board.sqlite")
    board.post(job("a"))
    first = board.claim("r", TTL)
    assert first is not None
    wall = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: wall[0]() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: wall[1]() + jump * 10**9)
    assert TTL - 30 < board.get("a").seconds_left <= TTL
    board.fail("a", first.epoch, delay=0.0)
    second = board.claim("r", TTL)
    assert second is not None
    assert second.epoch > first.epoch
    board.close()


CLAIMS = """
import sys
from service.board.sqlite import SQLiteBoard
board = SQLiteBoard(sys.argv[1])
print("ready", flush=True)
while True:
    got = board.claim(sys.argv[2], 600.0)
    if got is None:
        continue
    print(got.id, got.epoch, flush=True)
    board.renew(got.id, got.epoch, 600.0, {"by": sys.argv[2]})
    if got.epoch % 3:
        board.fail(got.id, got.epoch)
"""


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.long)])
def test_processes_killed_in_mid_claim_leave_a_sound_file_and_one_lease(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "board.sqlite"
    board = SQLiteBoard(path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seen: set[tuple[str, int]] = set()
    for turn in range(rounds):
        for n in range(8):
            board.post(job(f"s{turn}-{n}"))
        argv = [sys.executable, "-c", CLAIMS, str(path)]
        workers = [
            subprocess.Popen([*argv, f"r{turn}-{n}"], stdout=subprocess.PIPE, text=True, env=environment)
            for n in range(2)
        ]
        try:
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0.01, 0.15))
        finally:
            for worker in workers:
                worker.kill()
        said = [line.split() for worker in workers for line in worker.communicate()[0].splitlines(keepends=True)
                if line.endswith("\n")]  # fmt: skip
        leases = [(id, int(epoch)) for id, epoch in said]
        assert len(leases) == len(set(leases)), "an epoch is given once"
        assert not seen & set(leases)
        seen |= set(leases)
        for found in board.list(limit=1000):
            ours = [epoch for id, epoch in leases if id == found.id]
            assert found.epoch >= max(ours, default=0), "an acknowledged claim is never lost"
    assert seen
    board.close()
    assert sound(path)


def test_many_that_make_the_file_at_once_make_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "board.sqlite"
    gate = threading.Barrier(8)

    def make(n: int) -> SQLiteBoard:
        gate.wait()
        board = SQLiteBoard(path)
        board.post(job(f"s{n}"))
        return board

    with ThreadPoolExecutor(8) as pool:
        boards = list(pool.map(make, range(8)))
    assert len(boards[0].list()) == 8
    for board in boards:
        board.close()


def test_a_forked_child_has_the_board_too(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from service.board import Job\n"
        "from service.board.sqlite import SQLiteBoard\n"
        "board = SQLiteBoard(sys.argv[1]); board.post(Job(id='a'))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    board.post(Job(id='b')); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "board.post(Job(id='c')); print(len(board.list()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "board.sqlite")], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr


def test_a_file_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to look at" * 50)
    other = tmp_path / "other.sqlite"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    later = tmp_path / "later.sqlite"
    SQLiteBoard(later).close()
    with contextlib.closing(sqlite3.connect(later)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for path, words in [(text, "not a database"), (other, "something else"), (later, "schema 99"), (tmp_path, "open")]:
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(Invalid, match=words) as caught:
            open_board(f"sqlite://{path}")
        assert "rebuilt from the store" in str(caught.value)
        assert not before or path.read_bytes() == before
    with pytest.raises(Invalid, match=r"notes\.txt"):
        SQLiteBoard(text / "board.sqlite")


def test_a_file_that_others_keep_locked_is_unreachable_until_they_let_go(tmp_path: Path) -> None:
    path = tmp_path / "board.sqlite"
    board = SQLiteBoard(path, patience=0.05)
    board.post(job("a"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unreachable, match="try again"):
            board.claim("r", TTL)
        assert board.get("a").status == "queued", "reading goes on"
        other.execute("ROLLBACK")
    assert board.claim("r", TTL) is not None
    board.close()


def test_a_full_disk_is_no_acknowledgement_and_passes(tmp_path: Path) -> None:
    board = SQLiteBoard(tmp_path / "board.sqlite")
    board.post(job("a"))
    board._connection.execute("PRAGMA max_page_count = 1")
    big = {"x": "y" * 60_000}
    with pytest.raises(OSError, match="No space left"):
        board.post(job("b", progress=big))
    assert [found.id for found in board.list()] == ["a"]
    board._connection.execute("PRAGMA max_page_count = 100000")
    assert board.post(job("b", progress=big)).progress == big
    board.close()
