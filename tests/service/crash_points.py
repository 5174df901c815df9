"""The programs of a service that kill themselves at named points, where nothing in them is ready for it.

    >>> arm(directory, "told before", "claim after", "finish before")    # those of one role in this order
    >>> fired(directory)
    ['claim after', 'told before']

As a program it is one of the service's own, `api`, `work`, `drive` or `worker`, with the functions of `POINTS` wrapped
before its real entry point is called. A wrapped call that nobody has armed does what it always does. A `nursery` starts
them in no time.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nursery import Born, Nursery, main

if TYPE_CHECKING:
    from trials.records import Bundle

BOARDS = ("service.board.sqlite:SQLiteBoard", "service.board.redis:RedisBoard")


@dataclass(frozen=True, kw_only=True)
class Point:
    """The `n`th call of `call` in a program of `role` whose arguments match `about`; it dies `before` or `after` it, or
    when `half` of what is to be written is written. `story` is what is true then."""

    role: str
    call: str
    when: str
    about: str = ""
    n: int = 1
    story: str

    def places(self) -> list[str]:
        """What is wrapped; a verb of the board in every kind of board."""
        kind, name = self.call.split(":")
        return [f"{board}.{name}" for board in BOARDS] if kind == "board" else [self.call]


def _at(role: str, call: str, when: str, story: str, about: str = "", n: int = 1) -> Point:
    return Point(role=role, call=call, when=when, about=about, n=n, story=story)


_ONCE, _HALF, _APPEND = "trials.segments:write_once", "trials.segments:_write_all", "trials.log:LogWriter.append_many"
_TOLD = "^told"

POINTS: dict[str, Point] = {
    # -- the API: a submission, from its code to its answer ------------------------------------------------------------
    "code half": _at("api", _HALF, "half", "half a zip has a name that nobody looks at", r"/code/"),
    "code after": _at("api", "service.api.code:_kept", "after", "the zip is kept, and nobody was told"),
    "note before": _at("api", _ONCE, "before", "the request has no note yet", r"/requests/"),
    "note half": _at("api", _HALF, "half", "half the note has a name that nobody looks at", r"/requests/"),
    "note after": _at("api", _ONCE, "after", "the note names a search that is not there", r"/requests/"),
    "spec half": _at("api", _HALF, "half", "half a spec lies in a hidden directory", r"spec\.json"),
    "search before": _at(
        "api", "os:rename", "before", "the whole search is there under a hidden name", r"/searches/[^/.][^/]*$"
    ),
    "search after": _at(
        "api", "os:rename", "after", "the search is there, not synced, posted nowhere", r"/searches/[^/.][^/]*$"
    ),
    "post before": _at("api", "board:post", "before", "the search is durable, and not on the board"),
    "post after": _at("api", "board:post", "after", "the search is on the board, and nobody was told"),
    "submitted after": _at("api", "service.api.searches:_submitted", "after", "all is done but the answer"),
    # -- the API: a change of the goal ---------------------------------------------------------------------------------
    "goal before": _at("api", _ONCE, "before", "the new version is decided, and not written", r"/goals/"),
    "goal half": _at("api", _HALF, "half", "half a version has a name that nobody looks at", r"/goals/|\d{8}\.json"),
    "goal unlinked": _at("api", "os:link", "before", "the version is durable under a name of no version", r"/goals/"),
    "goal linked": _at("api", "os:link", "after", "the version is there, its name not synced", r"/goals/"),
    "goal after": _at("api", _ONCE, "after", "the version is durable; neither board nor client was told", r"/goals/"),
    "control before": _at("api", "board:control", "before", "the board does not know of the version"),
    "control after": _at("api", "board:control", "after", "the board knows, the client does not"),
    "edited after": _at("api", "service.api.goals:_edited", "after", "all is done but the answer"),
    # -- the runner ----------------------------------------------------------------------------------------------------
    "claim before": _at("work", "board:claim", "before", "it is about to claim", n=3),
    "claim after": _at("work", "service.runner.runner:Runner._begin", "before", "it has a lease and no driver for it"),
    "claim uncommitted": _at(
        "work", "service.board.sqlite:SQLiteBoard._change", "after", "a claim is written, its transaction open"
    ),
    "begin after": _at("work", "service.runner.drivers:Driver.begin", "after", "the driver has its order"),
    "renew before": _at("work", "board:renew", "before", "news of a driver is not on the board", n=2),
    "renew after": _at("work", "board:renew", "after", "news is on the board, and it does not know it", n=3),
    "finish before": _at("work", "board:finish", "before", "the search is over, the board says it runs"),
    "finish after": _at("work", "board:finish", "after", "the board was told, and it does not know it"),
    "fail before": _at("work", "board:fail", "before", "a driver is dead, the board says it runs"),
    "fail after": _at("work", "board:fail", "after", "the search is handed back, and it does not know it"),
    "mirror before": _at("work", "board:control", "before", "it saw a goal in the store, the board has not"),
    "mirror after": _at("work", "board:control", "after", "the board knows the goal from it"),
    # -- the driver ----------------------------------------------------------------------------------------------------
    "lease after": _at("drive", "trials.store:SearchStore.lease", "after", "it has the store's lease, and wrote none"),
    "running before": _at("drive", _APPEND, "before", "its first word is not written", r"^state running"),
    "asked before": _at("drive", _APPEND, "before", "a generation is drawn, and not written", r"^asked", n=2),
    "asked half": _at("drive", _HALF, "half", "half a segment of the log is written", r"/log/|\d{8}-\d{10}-", n=2),
    "asked after": _at("drive", _APPEND, "after", "a generation is written, nobody has it", r"^asked", n=2),
    "asked first": _at("drive", _APPEND, "after", "the first generation is written, nobody has it", r"^asked"),
    "attempt after": _at(
        "drive", "trials.segments:make_directory", "after", "an attempt has a directory and no row", r"/metrics/", n=3
    ),
    "final half": _at("drive", _HALF, "half", "half of an attempt's last segment is written", r"final-", n=3),
    "final before": _at("drive", "os:rename", "before", "the last segment has no name yet", r"/final-", n=3),
    "final after": _at("drive", "os:rename", "after", "the attempt is closed, its name not synced", r"/final-", n=3),
    "closed after": _at(
        "drive", "trials.attempts:AttemptWriter.close", "after", "the attempt is durable and told to nobody", n=4
    ),
    "told before": _at("drive", _APPEND, "before", "the attempt is closed, the log does not tell it", _TOLD, 2),
    "told unsynced": _at("drive", "os:rename", "after", "it is told, the segment's name not synced", r"/log/", 4),
    "told fsync": _at("drive", "os:fsync", "before", "a segment of the log has no name yet", r"/log/\.", 4),
    "told after": _at("drive", _APPEND, "after", "the log tells it, the controller does not know", _TOLD, 2),
    "taken after": _at(
        "drive", "service.controller:Controller._take_in", "after", "the controller knows, the worker does not", n=3
    ),
    "last told before": _at("drive", _APPEND, "before", "the last attempt is closed, and not told", _TOLD, 8),
    "last told after": _at("drive", _APPEND, "after", "the last attempt is told, no end is written", _TOLD, 8),
    "adopt before": _at("drive", _APPEND, "before", "it has read a goal, and follows the one before", r"^goal"),
    "adopt after": _at("drive", _APPEND, "after", "the log has the goal, nothing follows it yet", r"^goal"),
    "complete before": _at("drive", _APPEND, "before", "all is told, the end is not written", r"^state complete"),
    "complete after": _at("drive", _APPEND, "after", "the end is written, nobody knows it", r"^state complete"),
    "paused after": _at("drive", _APPEND, "after", "it is paused, the runner does not know", r"^state paused"),
    "ended before": _at("drive", "service.runner.drive:Channel.say", "before", "its last word is not said", r"^ended"),
    "ended after": _at("drive", "service.runner.drive:Channel.say", "after", "its last word is said", r"^ended"),
    # -- a worker ------------------------------------------------------------------------------------------------------
    "pulled after": _at("worker", "service.executors.worker:_Piped.pull", "after", "it has a bundle and began none"),
    "trained before": _at(
        "worker", "trials.attempts:AttemptWriter.close", "before", "a bundle is trained, and not durable", n=2
    ),
    "finish unsaid": _at(
        "worker", "service.executors.worker:_Piped.finish", "before", "its attempt is durable and told to nobody", n=2
    ),
    "finish said": _at(
        "worker", "service.executors.worker:_Piped.finish", "after", "its attempt is told, and it idles", n=2
    ),
    "checkpoint half": _at("worker", _HALF, "half", "half a checkpoint is written", r"\.safetensors", n=2),
    "checkpoint before": _at("worker", "os:rename", "before", "a checkpoint has no name yet", r"\.safetensors$", 2),
    "checkpoint after": _at(
        "worker", "os:rename", "after", "a checkpoint is there beside the one before", r"\.safetensors$", 2
    ),
    "flushed after": _at(
        "worker",
        "trials.attempts:AttemptWriter.flush",
        "after",
        "reports are durable, no checkpoint has their step",
        n=3,
    ),
    "checkpoint kept": _at("worker", "trials.checkpoints:save", "after", "a checkpoint is durable", n=2),
}

ALONE = ("mirror before", "mirror after")  # are come to only while the API is down

# -- for whoever tests -------------------------------------------------------------------------------------------------


def arm(directory: Path, *names: str) -> None:
    """Have the programs that were started with this directory die at these points; at several of one role one after the
    other."""
    assert all(name in POINTS for name in names)
    (directory / "fired").write_text("")
    _write(directory, names)


def armed(directory: Path) -> list[str]:
    """The points that are still to come."""
    try:
        names: list[str] = json.loads((directory / "armed").read_text())
    except FileNotFoundError:
        return []
    return names


def found_down(directory: Path) -> bool:
    """Whether the next to die does so over what the API, which has died, has left undone."""
    left = armed(directory)
    return any(name in ALONE for name in left) and not any(POINTS[name].role == "api" for name in left)


def fired(directory: Path) -> list[str]:
    """The points at which somebody died."""
    return (directory / "fired").read_text().splitlines()


def _write(directory: Path, names: Sequence[str]) -> None:
    path = directory / "armed"
    if not names:
        path.unlink(missing_ok=True)
        return
    whole = directory / f"armed.{os.getpid()}"
    whole.write_text(json.dumps(names))
    whole.replace(path)


# -- in a program ------------------------------------------------------------------------------------------------------


class Traps:
    """The points of one program. What it does itself calls nothing that it wraps."""

    def __init__(self, directory: Path, role: str) -> None:
        self.directory = directory
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        for name, point in POINTS.items():
            for place in point.places() if point.role == role else ():
                self._wrap(place, functools.partial(self._trapped, name, point))

    def _wrap(self, place: str, trapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, name, trapped(getattr(owner, name)))

    def _trapped(self, name: str, point: Point, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            due = self._is_due(name, point, args, kwargs)
            if due and point.when == "before":
                self._die(name)
            if due and point.when == "half":
                write, payload = args
                real(write, payload[: len(payload) // 2])
                self._die(name)
            found = real(*args, **kwargs)
            if due:
                self._die(name)
            return found

        return call

    def _is_due(self, name: str, point: Point, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        ours = (other for other in armed(self.directory) if POINTS[other].role == point.role)
        if next(ours, None) != name or not re.search(point.about, _said(args, kwargs)):
            return False
        with self._lock:
            self._counts[name] += 1
            due = self._counts[name] == point.n
            if due:
                self._counts[name] = 0
            return due

    def _die(self, name: str) -> None:
        with self._lock, (self.directory / "fired").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{name}\n")
            left = armed(self.directory)
            left.remove(name)
            _write(self.directory, left)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)


def _said(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a call is about: paths, also of what is open; kinds of events; names of what is said."""
    words = list(kwargs)
    for arg in args:
        if isinstance(arg, str | Path):
            words.append(str(arg))
        elif isinstance(arg, int) and os.path.exists(f"/proc/self/fd/{arg}"):
            words.append(os.readlink(f"/proc/self/fd/{arg}"))
        elif isinstance(arg, list):
            words += [f"{event[0]} {event[1].get('state', '')}" for event in arg if isinstance(event, tuple)]
        elif isinstance(name := getattr(getattr(arg, "__self__", None), "name", None), str | Path):
            words.append(str(name))
    return " ".join(words)


def be(words: Sequence[str]) -> None:
    """The program that the first word names, with traps in the directory that the second does."""
    role, where, *rest = words
    nursery = Nursery.forked(be) if role == "work" else None  # of drivers: before there are traps and threads
    traps = Traps(Path(where), role)
    if role == "api":
        api(*rest)
    elif nursery is not None:
        work(nursery, traps.directory, *rest)
    elif role == "drive":
        drive(traps.directory, *rest)
    else:
        worker(traps.directory, *rest)


def api(store: str, board: str, port: str, tokens: str) -> None:
    from service.access import Access
    from service.api.serve import serve

    serve(store, board, port=int(port), access=Access(Path(tokens)))


def work(nursery: Nursery, directory: Path, store: str, board: str, name: str, executor: str) -> None:
    from service.runner.work import work as real

    module: Any = importlib.import_module("service.runner.drivers")

    def started(argv: list[str], **_: Any) -> Born:
        return Born(nursery, ["drive", str(directory), executor])

    module.subprocess = SimpleNamespace(Popen=started, PIPE=module.subprocess.PIPE)
    real(store=store, board=board, name=name, ttl=2.0, searches=2, slots=2, cache=directory / "cache")


def drive(directory: Path, executor: str) -> None:
    from service.runner import drive as module

    dangerous_workers(directory)
    module.main(executor)


def worker(directory: Path, pipe: str, lifeline: str) -> None:
    from service.executors import worker as module

    _poison(directory)
    _weigh(directory)
    module.main(int(pipe), int(lifeline))


def _poison(directory: Path) -> None:
    """Whoever trains a trial whose number stands in the file `poison` dies of it, after the first word about it."""
    from trials.train import Trainer

    real = Trainer.train

    def train(self: Trainer, bundle: Bundle, **more: Any) -> Iterator[Any]:
        found = directory / "poison"
        deadly = json.loads(found.read_text()) if found.exists() else []
        for record in real(self, bundle, **more):
            if any(trial.number in deadly for trial in bundle.trials):
                os.kill(os.getpid(), signal.SIGKILL)
            yield record

    Trainer.train = train  # type: ignore[method-assign]


def _weigh(directory: Path) -> None:
    """Has every fused run leave a digest of each trial's last weights, in the file `weights`."""
    from trials import resuming
    from trials.fused import FusedRun

    real = FusedRun._trained

    def trained(run: FusedRun, every: float | None) -> Iterator[Any]:
        yield from real(run, every)
        whole = resuming.checkpoint_of(run)
        for number in whole.trials:
            tensors = resuming.picked(whole, [number]).tensors
            digest = hashlib.sha256()
            for name in sorted(name for name in tensors if name.startswith("program.")):
                own = tensors[name][tensors[name] != 0]  # beside wider neighbours a lane ends in more zeros
                digest.update(name.encode() + own.numpy().tobytes())
            with (directory / "weights").open("a") as file:
                file.write(f"{number} {digest.hexdigest()}\n")

    FusedRun._trained = trained  # type: ignore[method-assign, assignment]


def dangerous_workers(directory: Path) -> Callable[[], None]:
    """Workers that this process starts from now on have traps; returns what makes them harmless again."""
    module: Any = importlib.import_module("service.executors.worker")
    real = module.subprocess

    def started(argv: list[str], **options: Any) -> Any:
        *_, pipe, lifeline = argv
        return real.Popen([sys.executable, "-u", __file__, "worker", str(directory), pipe, lifeline], **options)

    made = SimpleNamespace(Popen=started, DEVNULL=real.DEVNULL, STDOUT=real.STDOUT)
    module.subprocess = made
    return lambda: setattr(module, "subprocess", real)


if __name__ == "__main__":
    if sys.argv[1] == "nursery":
        main(sys.argv[2], be)
    else:
        be(sys.argv[1:])
