"""Ending a driver that outlived its right to a search: stopped, hung, or cut off from its runner.

>>> clear(search)  # called by whoever has the search on the board now
''

The board gives a search to one runner at a time, the store's lease lets one process write its log. A driver whose
runner has lost the search on the board is ended by that runner; but where both were stopped, nobody does, and the
store's lease would stay with a process that may never run again. Whoever has the search now therefore kills it, if it
is a driver on this machine. A search that somebody runs by hand, or on another machine, is left alone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path

from trials import layout
from trials.lease import Held, holder
from trials.store import SearchStore

DRIVE = "service.runner.drive"  # the module that a driver process runs
PATIENCE = 5.0  # seconds that a killed process gets to be gone


def clear(search: SearchStore) -> str:
    """Make the store's lease free, if only a driver without a right to it stands in the way; empty, or who has it."""
    path = layout.lease(search.path)
    owner = holder(path)
    if owner is None:
        return ""
    held = str(Held(path, owner))
    if owner.get("host") != socket.gethostname():
        return held
    try:
        process = os.pidfd_open(owner["pid"])  # from here on the number means this process, not one that follows it
    except ProcessLookupError:
        return ""
    except OSError:
        return held
    try:
        if not is_driver(owner["pid"]) or holder(path) != owner:
            return held
        signal.pidfd_send_signal(process, signal.SIGKILL)
        gone = select.poll()
        gone.register(process, select.POLLIN)
        return "" if gone.poll(PATIENCE * 1000) else held
    except ProcessLookupError:
        return ""
    except OSError:  # another user's
        return held
    finally:
        os.close(process)


def is_driver(pid: int) -> bool:
    """Whether that process runs `service.runner.drive`."""
    try:
        return DRIVE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
