"""The driver process of one search: `python -m service.runner.drive local`. Its runner starts it ahead of time.

It imports what is slow, says that it is ready, and waits for one line of orders on stdin; later lines change them:

    < {"ready": true}
    > {"search": "digits-3fa2b1", "store": "/var/continua", "cache": "/var/cache/code", "installer": "pip", "slots": 4}
    < {"progress": {"asked": 16, "finished": 3, ...}}       at most four a second, when there is news
    > {"slots": 2}
    > {"stop": true}                                        hand the search back: it ends as interrupted
    < {"ended": "complete", "why": "", "goal": 2}           nothing follows; `goal` is the version that it ended with

`ended` is complete, failed, interrupted, paused, stopped or cancelled; held, where another process has the search, or
its cluster or disk is away; or crashed, for what should not happen (its traceback is on stderr). When stdin ends the
runner is dead, and so is this process at once: nothing is left behind that trains. What the user's code prints goes to
stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from search_spaces.faults import Invalid
from trials.store import Damaged, Held, NotFound, Store

if TYPE_CHECKING:
    from service.controller import Progress
    from service.driver import Result
    from service.executors import Crew
    from service.executors.local import Bench
    from trials.records import Outcome

ALIVE = 5.0  # seconds between signs of life
SLOTS = 1.0  # seconds between looks at how many workers there are
MOST_POINT = 1 << 15  # bytes of a best point that is shown on the board
# with what the first bundled task and the first Arrow table would import
_SLOW = ("torch", "service.driver", "service.samplers.tpe", "trials.train", "sklearn.datasets", "pandas")
_SLOW_BY_EXECUTOR = {"ray": ("service.executors.ray_tune",)}


class Channel:
    """Lines to the runner. Safe from any thread."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._lock = out, threading.Lock()

    def say(self, **message: Any) -> None:
        """One message; a runner that is gone is noticed elsewhere."""
        line = json.dumps(message, allow_nan=False)
        with self._lock:
            try:
                self._out.write(line + "\n")
                self._out.flush()
            except (OSError, ValueError):
                return


class Orders:
    """What the runner wants, read by a thread of its own after the first line."""

    def __init__(self, lines: BinaryIO, first: Mapping[str, Any]) -> None:
        self.slots: int | None = first.get("slots")
        self.stop = threading.Event()
        self._lines = lines
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def _read(self) -> None:
        try:
            for line in self._lines:
                order = json.loads(line)
                if "slots" in order:
                    self.slots = order["slots"]
                if order.get("stop"):
                    self.stop.set()
        finally:
            os._exit(1)  # the runner is dead


class Teller:
    """Passes progress on when there is news."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._told: dict[str, Any] = {}
        self._crew: Crew | None = None
        self._slots: dict[str, Any] = {"workers": 0, "capacity": None, "lanes": None}
        self._asked = self._said = 0.0
        self.watching = False

    def engaged(self, crew: Crew, lanes: int) -> None:
        """Whom to ask how many workers there are."""
        self._crew, self._slots["lanes"] = crew, lanes

    def watch(self, progress: Progress) -> None:
        """Called a few times a second."""
        if self._crew is not None and time.monotonic() - self._asked > SLOTS:  # on a cluster that is a question
            self._asked = time.monotonic()
            self._slots |= {"workers": self._crew.live(), "capacity": self._crew.capacity()}
        news = plain(progress) | self._slots
        clockless = {key: value for key, value in news.items() if key != "wall_seconds"}
        if clockless != self._told:
            self._told = clockless
            self._channel.say(progress=news)
        elif time.monotonic() - self._said > ALIVE:
            self._channel.say(alive=True)
        else:
            return
        self.watching, self._said = True, time.monotonic()

    def ended(self, progress: Progress) -> None:
        """The last one."""
        self._crew = None
        self._slots["workers"] = 0
        self.watch(progress)


def plain(progress: Progress) -> dict[str, Any]:
    """A progress as plain data, every number finite."""
    spent = progress.spent
    return {
        "asked": progress.asked,
        "finished": progress.finished,
        "running": progress.running,
        "endings": dict(progress.endings),
        "best": _best(progress.best),
        "spent": {"device_seconds": spent.device_s, "flops": spent.flops, "executed_flops": spent.executed_flops},
        "wall_seconds": progress.wall_s,
        "goal": progress.goal,
    }


def _best(best: Outcome | None) -> dict[str, Any] | None:
    if best is None or best.value is None or not math.isfinite(best.value):
        return None
    point = dict(best.point)
    shown = point if len(json.dumps(point)) <= MOST_POINT else None
    return {"number": best.number, "value": best.value, "point": shown}


def drive(
    order: Mapping[str, Any], executor: Any, orders: Orders, teller: Teller, bench: Bench | None
) -> dict[str, Any]:
    """Drive the search to an end, whatever happens. Returns what to say of it."""
    from service.controller import SearchFailed

    goal = 0
    try:
        store = Store(order["store"])
        search = store.search(order["search"])
        goal = search.goal_version()  # looked at first: one that follows is not what it failed by
        result = _resumed(store, search.spec(), order, executor, orders, teller, bench)
    except Invalid as error:
        return {"ended": "failed", "why": "\n".join(error.faults), "goal": goal}
    except Held as error:
        return {"ended": "held", "why": str(error), "goal": goal}
    except OSError as error:  # a cluster, or the store's disk, that is away: it may come back
        return {"ended": "held", "why": f"it cannot be reached now: {error}", "goal": goal}
    except (Damaged, NotFound, SearchFailed) as error:
        return {"ended": "failed", "why": str(error), "goal": goal}
    except BaseException as error:
        traceback.print_exc()
        return {"ended": "crashed", "why": f"its driver failed: {error!r}", "goal": goal}
    teller.ended(result.progress)
    why = result.progress.failure or "" if result.state == "failed" else ""
    return {"ended": "held" if result.progress.unwritable else result.state, "why": why, "goal": result.goal}


def _resumed(
    store: Store,
    document: Mapping[str, Any],
    order: Mapping[str, Any],
    executor: Any,
    orders: Orders,
    teller: Teller,
    bench: Bench | None,
) -> Result:
    from service.driver import resume

    if document.get("replay"):
        raise Invalid(["search: replays another one's points, and only their comparison can; run that again instead."])
    requirements, sha = list(document.get("requirements") or ()), document.get("code")
    if requirements and executor != "ray":
        rule = "are installed by the executor `ray` alone"
        way = "install them where the runner runs and submit without them, or start the runner with --executor ray"
        raise Invalid([f"requirements: {rule}, but got {requirements} with `{executor}`; {way}."])
    directory = None
    if sha:
        from service.code import unpacked

        directory = unpacked(store.root, sha, Path(order["cache"]))
    environment = {"working_dir": str(directory)} if directory else {}
    return resume(
        store,
        order["search"],
        executor=executor,
        watch=teller.watch,
        engaged=teller.engaged,
        bench=bench,
        interrupted=orders.stop,
        slots=lambda: orders.slots,
        directory=directory,
        runtime_env={**environment, **({order["installer"]: requirements} if requirements else {})} or None,
    )


def _own_streams() -> tuple[BinaryIO, Channel]:
    """The runner's pipes, out of reach of whatever the user's code reads or prints."""
    lines, out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(lines, "rb"), Channel(os.fdopen(out, "w", encoding="utf-8"))


def _benched() -> Bench:
    """A worker that gets ready meanwhile. It holds a lifeline to this process, and so ends with it."""
    from service.executors.local import Bench
    from service.executors.worker import Worker

    bench = Bench()
    bench.put(Worker.start(1))
    return bench


def _warm() -> None:
    """Connected to the cluster, if it answers now; else the first search is told why it does not."""
    from service.executors.ray_connection import warm

    with contextlib.suppress(Exception):
        warm()


def _live(channel: Channel, teller: Teller) -> None:
    """Signs of life until the search is at work; from then on they come from who looks after it, and a hang shows."""
    while not teller.watching:
        channel.say(alive=True)
        time.sleep(ALIVE)


def main(executor: str) -> None:
    """The process, from its start to its end."""
    lines, channel = _own_streams()
    bench = _benched() if executor == "local" else None
    for name in (*_SLOW, *_SLOW_BY_EXECUTOR.get(executor, ())):
        importlib.import_module(name)
    if executor == "ray":
        _warm()
    channel.say(ready=True)
    if first := lines.readline():
        order, teller = json.loads(first), Teller(channel)
        threading.Thread(target=_live, args=(channel, teller), name="live", daemon=True).start()
        channel.say(**drive(order, executor, Orders(lines, order), teller, bench))
    sys.stderr.flush()
    os._exit(0)  # nothing of ours is left to be put away, and what the user's code left shall not hold us up


if __name__ == "__main__":
    main(sys.argv[1])
