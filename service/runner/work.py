"""A runner as a program: what `continua work` does.

    >>> work(store="runs", board="sqlite:////var/continua/board.sqlite", executor="local", quotas={"alice": 4})

It runs until SIGTERM or Ctrl-C, then hands its searches back. What happens is said on stderr, a line an event.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from search_spaces.faults import Invalid
from service.board import open_board
from service.executors import INSTALLERS
from service.runner.runner import Runner
from service.show import say
from trials.store import Store

EXECUTORS = ("local", "ray")
NODE = 10.0  # seconds that a Ray node of this machine, which may have been started beside this, gets to appear


def work(
    *,
    store: Path | str,
    board: str,
    executor: str = "local",
    searches: int = 4,
    slots: int | None = None,
    quotas: Mapping[str, int] | None = None,
    name: str | None = None,
    ttl: float = 15.0,
    cache: Path | str | None = None,
    installer: str = "pip",
    stop: threading.Event | None = None,
) -> None:
    """Run searches until `stop` is set; without one, until SIGTERM or SIGINT (then call it from the main thread).

    Args:
        quotas: by owner (`*`: any other) the most worker slots, and so the most searches, at once.
        name: what the board calls this runner; the machine and the process by default.
        cache: where users' code is unpacked; `$XDG_CACHE_HOME/continua/code` by default.
        installer: of the packages that users' code requires, `pip` or `uv`.

    Raises:
        Invalid: with every fault of the arguments, the store and the board's URL.
        Unreachable: when the board does not answer at the start.
        NotStarted: when `ray` is to run here and does not start.
    """
    if faults := _faults(executor, searches, slots, quotas or {}, ttl, installer):
        raise Invalid(faults)
    opened = open_board(board)
    with contextlib.ExitStack() as stack:
        stack.callback(opened.close)
        for warning in opened.warnings:
            _log(f"warning: {warning}")
        runner = Runner(
            Store(store),
            opened,
            name=name or f"{socket.gethostname()}-{os.getpid()}",
            cache=Path(cache) if cache else default_cache(),
            executor=executor,
            searches=searches,
            slots=slots,
            quotas=quotas,
            ttl=ttl,
            installer=installer,
            environment=stack.enter_context(_cluster(executor)),
            say=_log,
        )
        ending = stop or stack.enter_context(_until_signalled())
        _log(f"{runner.name}: at work on {Path(store).absolute()} ({executor}, at most {searches} searches)")
        runner.run(ending)
        _log(f"{runner.name}: ended")


def default_cache() -> Path:
    """Where users' code is unpacked where nobody says otherwise."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path("~/.cache").expanduser()) / "continua" / "code"


def _faults(
    executor: str, searches: int, slots: int | None, quotas: Mapping[str, int], ttl: float, installer: str
) -> list[str]:
    found = []
    if executor not in EXECUTORS:
        found.append(f"executor: must be one of {', '.join(EXECUTORS)}, but got {executor!r}.")
    if installer not in INSTALLERS:
        found.append(f"installer: must be one of {', '.join(INSTALLERS)}, but got {installer!r}.")
    if searches < 1:
        found.append(f"searches: must be at least 1, but got {searches}; a runner without any is not needed.")
    if slots is not None and slots < 1:
        found.append(f"slots: must be at least 1, but got {slots}; leave it out for all that there are.")
    if not ttl >= 1:
        found.append(f"ttl: must be at least 1 second, but got {ttl:g}; 15 is usual.")
    found += [
        f"quota: must be a whole number of slots of at least 0, but got {owner}={most!r}."
        for owner, most in quotas.items()
        if most < 0
    ]
    return found


@contextlib.contextmanager
def _cluster(executor: str) -> Iterator[Mapping[str, str]]:
    """What drivers need in their environment to find Ray: the cluster that RAY_ADDRESS names, else one of our own."""
    if executor != "ray":
        yield {}
        return
    from service.executors.ray_cluster import NO_NODE, Head, node_here

    if address := os.environ.get("RAY_ADDRESS"):
        if not node_here(NODE):
            _log(f"warning: {NO_NODE.format(address=address)}")
        yield {}
        return

    with Head() as head:
        _log(f"started Ray on this machine ({head.address})")
        yield head.environment


@contextlib.contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log(text: str) -> None:
    say(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}")
