"""The API under load, as its clients see it: submitting, listing a thousand queued searches, two hundred watchers.

    $ python -m benchmarks.service_api --json

The server is a process of its own on this machine, with a store and a board on its disk and no runner: what is
submitted stays queued. The clients share the machine's cores with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.service_processes import Server, resident_mb
from trials.store import Store

SPEC: dict[str, Any] = {
    "name": "queued",
    "task": "uci/digits",
    "network": {"kind": "mlp", "layers": 1},
    "space": {"width.0": {"type": "width", "low": 4, "high": 64}, "lr": {"type": "float", "low": 0.01, "high": 1.0}},
    "budget": {"trials": 16},
}
CLIENTS = (1, 16, 64)
EVENTS = 20  # log events whose way to the watchers is timed


def submits(server: Server, clients: int, each: int) -> dict[str, float]:
    """Milliseconds of a submission, by `clients` threads that submit `each` one after the other."""
    taken: list[float] = []
    faults: list[str] = []

    def work() -> None:
        with server.client() as client:
            for _ in range(each):
                began = time.perf_counter()
                answer = client.post("/v1/searches", json={"spec": SPEC})
                taken.append(time.perf_counter() - began)
                if answer.status_code != 201:
                    faults.append(answer.text)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    assert not faults, faults[0]
    p50, p99 = np.percentile(np.array(taken) * 1000, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "per_s": len(taken) / wall}


def listing(server: Server) -> dict[str, float]:
    """Milliseconds of a first page of a hundred, of its repetition, and of going through all pages."""

    def page(client: httpx.Client, cursor: str | None) -> tuple[dict[str, Any], float]:
        began = time.perf_counter()
        answer = client.get("/v1/searches", params={"limit": 100, **({"cursor": cursor} if cursor else {})})
        answer.raise_for_status()
        return answer.json(), 1000 * (time.perf_counter() - began)

    with server.client() as client:
        found, first = page(client, None)
        again = min(page(client, None)[1] for _ in range(5))
        total, many = first, len(found["items"])
        while found["next"]:
            found, taken = page(client, found["next"])
            total, many = total + taken, many + len(found["items"])
    return {"searches": many, "first_page_ms": first, "page_again_ms": again, "all_pages_ms": total}


async def _watch(
    server: Server, search_id: str, seen: dict[str, list[float]], ready: asyncio.Event, left: list[int]
) -> None:
    async with (
        httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=120) as client,
        client.stream("GET", f"/v1/searches/{search_id}/events") as answer,
    ):
        assert answer.status_code == 200, answer.status_code
        first = True
        async for line in answer.aiter_lines():
            if first:
                first, left[0] = False, left[0] - 1
                if left[0] == 0:
                    ready.set()
            if line.startswith("data:") and (mark := json.loads(line[5:]).get("mark")):
                seen.setdefault(mark, []).append(time.perf_counter())
                if mark == f"m{EVENTS - 1}":
                    return


async def _watchers(server: Server, store: Path, search_id: str, many: int) -> dict[str, float]:
    """So many watch one search while a driver's events are written into its log."""
    log = Store(store).search(search_id).log_writer(1)
    log.append("state", {"state": "running", "mark": "begin"})
    seen: dict[str, list[float]] = {}
    ready, left = asyncio.Event(), [many]
    tasks = [asyncio.create_task(_watch(server, search_id, seen, ready, left)) for _ in range(many)]
    await asyncio.wait_for(ready.wait(), 60)
    before, sent = resident_mb(server.process.pid), {}
    cpu, began = _cpu_seconds(server.process.pid), time.perf_counter()
    for number in range(EVENTS):
        log.append("state", {"state": "running", "mark": f"m{number}"})
        sent[f"m{number}"] = time.perf_counter()
        await asyncio.sleep(0.25)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    took = time.perf_counter() - began
    delays = np.array([at - sent[mark] for mark, times in seen.items() if mark in sent for at in times]) * 1000
    assert len(delays) == many * EVENTS, f"{len(delays)} of {many * EVENTS} events arrived"
    p50, p99 = np.percentile(delays, [50, 99])
    return {
        "watchers": many,
        "delay_p50_ms": float(p50),
        "delay_p99_ms": float(p99),
        "server_cores": (_cpu_seconds(server.process.pid) - cpu) / took,
        "server_mb": before,
    }


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def figures(quick: bool = False) -> dict[str, Any]:
    """`submit_<clients>`, `list_queued` and `watch`."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="continua-api-") as name, Server(Path(name)) as server:
        for clients in CLIENTS[: 2 if quick else 3]:
            submits(server, clients, 1)  # connections and caches are made
            found[f"submit_{clients}"] = submits(server, clients, max(2, (64 if quick else 300) // clients))
        while len(Store.open_for_reading(server.store).searches()) < (150 if quick else 1000):
            submits(server, 4, 10)
        found["list_queued"] = listing(server)
        search_id = Store.open_for_reading(server.store).searches()[0]
        found["watch"] = asyncio.run(_watchers(server, server.store, search_id, 20 if quick else 200))
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    options = parser.parse_args()
    found = figures(options.quick)
    if options.json:
        print(json.dumps(found))
        return
    for what, numbers in found.items():
        print(f"{what:12} " + ", ".join(f"{name} {value:.2f}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
