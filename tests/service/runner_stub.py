"""A driver process that drives nothing: it speaks `drive`'s lines, and does what its search's spec says.

Its place on the command line is that of `-m service.runner.drive`; it starts in a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def progress(finished: int, **more: Any) -> None:
    say(progress={"asked": 99, "finished": finished, "running": 1, "endings": {"complete": finished}, **more})


def main() -> None:
    say(ready=True)
    line = sys.stdin.readline()
    if not line:
        return
    order = json.loads(line)
    slots, stop = [order["slots"]], threading.Event()

    def read() -> None:
        for later in sys.stdin:
            wanted = json.loads(later)
            slots[:] = [wanted.get("slots", slots[0])]
            if wanted.get("stop"):
                stop.set()
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    path = Path(order["store"], "searches", order["search"])
    with (path / "runs").open("a") as file:
        file.write(f"{os.getpid()}\n")
    runs = len((path / "runs").read_text().split())
    does = json.loads((path / "spec.json").read_text())["spec"]["stub"]
    print(f"run {runs} does {does}", file=sys.stderr, flush=True)
    if does == "complete":
        progress(3, best={"number": 1, "value": 0.5, "point": {"x": 0.25}})
        say(ended="complete", why="", goal=0)
    elif does == "crash":
        print("no engine here", file=sys.stderr, flush=True)
        sys.exit(3)
    elif does == "killed":  # each run gets one trial done
        progress(runs - 1)
        time.sleep(0.8)
        progress(runs)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    elif does == "talks":
        for _ in range(40):
            print("x" * 100_000, file=sys.stderr, flush=True)
        say(ended="complete", why="", goal=0)
    elif does in ("wait", "deaf"):
        while does == "deaf" or not stop.wait(0.02):
            progress(1, slots=slots[0])
            time.sleep(0.02)
        say(ended="interrupted", why="", goal=0)
    else:
        say(**does)


if __name__ == "__main__":
    main()
    os._exit(0)
