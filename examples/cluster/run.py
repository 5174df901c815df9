"""A cluster on one machine that loses a node, a runner and the API, and no trial.

    $ bash examples/cluster/run.sh

Three Ray nodes, a Redis-compatible server, two runners and the API are started. Three searches are submitted with the
client: two of them bring code of their own, under the same name. The first is scaled up, the second paused and resumed,
the third extended; a node, a runner and the API are killed meanwhile. In the end every search must be complete: each
trial once, with the value that its own code gives for its point.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from machines import Process, Processes, free_port, wait_for  # noqa: E402

from service.client import Client, Search  # noqa: E402
from service.documents import document, override  # noqa: E402
from service.executors.ray_cluster import Head  # noqa: E402
from trials.records import Ending  # noqa: E402
from trials.store import Store  # noqa: E402

BEGAN = time.monotonic()
PATIENCE = 240.0  # seconds for the whole


def say(text: str) -> None:
    """A line of the story, with its time."""
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def ended(search: Search) -> int:
    """How many of its trials have ended, as the service says."""
    search.refresh()
    return sum(search.row["trials"].values())


def spec(name: str, trials: int) -> dict[str, Any]:
    """A spec of this directory with another budget."""
    return override(document(HERE / name), [f"budget.trials={trials}"])


def serving(processes: Processes, port: int, name: str) -> Process:
    """The API, once it answers."""
    process = processes.start(name, "serve", "--port", str(port))
    client = Client(f"http://127.0.0.1:{port}")
    wait_for("the API answers", lambda: _healthy(client), 30)
    return process


def _healthy(client: Client) -> bool:
    try:
        client.health()
    except Exception:
        return False
    return True


def play(directory: Path, quick: bool) -> None:
    """The story, from the first process to the last check. Raises AssertionError where a trial is lost or wrong."""
    trials = 48 if quick else 96
    environment = {
        **os.environ,
        "CONTINUA_STORE": str(directory / "store"),
        "XDG_CONFIG_HOME": str(directory / "config"),
        "XDG_CACHE_HOME": str(directory / "cache"),
    }
    os.environ.update(environment)
    with Head(cpus=2) as head:
        say(f"a Ray head with two CPUs at {head.address}")
        second, _third = head.join(cpus=2), head.join(cpus=2)
        say("two more nodes with two CPUs each")
        with Processes(directory, {**environment, **head.environment}) as processes:
            processes.environment["CONTINUA_BOARD"] = processes.redis()
            port = free_port()
            api = serving(processes, port, "api")
            say("a Redis-compatible server, and the API")
            names = ("runner-1", "runner-2")
            runners = {name: processes.start(name, "work", "--executor", "ray", "--name", name) for name in names}
            say("two runners")
            client = Client(f"http://127.0.0.1:{port}")
            first = client.submit(spec("sleeping.yaml", trials), code=HERE / "first")
            other = client.submit(spec("sleeping.yaml", trials), code=HERE / "second")
            digits = client.submit(spec("digits.yaml", trials))
            say(f"submitted {first.id}, {other.id} and {digits.id}, {trials} trials each")

            wait_for("the first search works", lambda: ended(first) >= 2, 90)
            first.scale(3)
            began = time.monotonic()
            wait_for("three workers", lambda: workers(first) >= 3, 60)
            say(f"{first.id} scaled from 1 to 3 workers: at work after {time.monotonic() - began:.1f} s")

            wait_for("the second search works", lambda: ended(other) >= 2, 90)
            other.pause()
            wait_for("the pause", lambda: state(other) == "paused", 60)
            before = ended(other)
            say(f"{other.id} paused after {before} trials")

            second.kill()
            say("a node is killed")
            time.sleep(2.0)
            assert ended(other) == before, "a paused search went on"
            other.resume()
            say(f"{other.id} resumed")

            wait_for("work after the node's death", lambda: ended(digits) >= 2, 90)
            victim = runner_of(first) or runner_of(other) or names[0]
            runners[victim].kill()
            say(f"{victim} is killed")

            api.kill()
            say("the API is killed")
            time.sleep(1.0)
            serving(processes, port, "api-again")
            say("the API is back at the same address")
            digits.extend(trials=trials + 8)
            say(f"{digits.id} extended by 8 trials")

            for search in (first, other, digits):
                search.wait(timeout=PATIENCE)
                say(f"{search.id}: {state(search)}")
    check(Store.open_for_reading(directory / "store"), first, trials, lambda x: (x - 0.25) ** 2)
    check(Store.open_for_reading(directory / "store"), other, trials, lambda x: 10.0 + (x + 0.5) ** 2)
    check(Store.open_for_reading(directory / "store"), digits, trials + 8, None)


def state(search: Search) -> str:
    """What the service says it does."""
    search.refresh()
    return search.state


def workers(search: Search) -> int:
    """Worker slots at work."""
    job = search.refresh().row["job"]
    return int(job["progress"].get("workers") or 0)


def runner_of(search: Search) -> str:
    """Who has it."""
    return str(search.refresh().row["job"]["runner"])


def check(store: Store, search: Search, trials: int, truth) -> None:  # type: ignore[no-untyped-def]
    """Read the store itself: every trial ended once, complete, with the value of its own code."""
    found = store.search(search.id)
    told = Counter(n for e in found.log() if e.kind == "told" for n in e.body["numbers"])
    assert sorted(told) == list(range(trials)), f"{search.id}: told of {len(told)} trials, not {trials}"
    assert set(told.values()) == {1}, f"{search.id}: some trials were told twice"
    outcomes = found.outcomes()
    assert sorted(o.number for o in outcomes) == list(range(trials)), f"{search.id}: {len(outcomes)} outcomes"
    assert all(o.ending is Ending.COMPLETE for o in outcomes), f"{search.id}: {Counter(o.ending for o in outcomes)}"
    assert found.damaged == [], f"{search.id}: {found.damaged}"
    if truth is not None:
        wrong = [o.number for o in outcomes if o.value != truth(o.point["x"])]
        assert wrong == [], f"{search.id}: trials {wrong} have values of another code"
    say(f"{search.id}: {trials} of {trials} trials complete, each once")


def main() -> int:
    """Tell the story in a directory that is removed when it ends well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="continua-cluster-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        try:
            play(directory, options.quick)
        except BaseException:
            for log in sorted(directory.glob("*.log")):
                print(f"-- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
            raise
    say("every search is complete with exact counts: no trial was lost, none was told twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
