"""What the user's code prints during one call: the tail of it, so that a trial's log can be shown.

    >>> with listening() as said:
    ...     objective(trial)
    >>> said()
    'epoch 0: loss 0.31\\n'

What is printed still goes where it went. In a process whose output is a file (`keep_in`), the tail is read from there,
with what C code and subprocesses printed; elsewhere it is what this thread wrote to `sys.stdout` and `sys.stderr`. What
such a file had before a call stays for whoever asks what the process said last.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

MOST = 16 * 1024  # bytes kept of a call
ROOM = 1024 * 1024  # bytes of a process's output beyond which it begins anew at the next call

_kept_in: int | None = None


def keep_in(fd: int) -> None:
    """From now on all that this process prints is in that file (which is emptied now and then, between calls)."""
    global _kept_in
    _kept_in = fd


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], str]]:
    """Listen while the block runs; the function then tells the tail of what was printed."""
    if _kept_in is None:
        tail = bytearray()
        with (
            contextlib.redirect_stdout(_Ear(sys.stdout, tail)),
            contextlib.redirect_stderr(_Ear(sys.stderr, tail)),
        ):
            yield lambda: _text(tail)
        return
    fd = _kept_in
    _flush()
    if os.lseek(fd, 0, os.SEEK_END) > ROOM:
        os.ftruncate(fd, 0)
    began = os.lseek(fd, 0, os.SEEK_END)
    yield lambda: _read(fd, began)


def _read(fd: int, began: int) -> str:
    _flush()
    size = os.fstat(fd).st_size
    return _text(os.pread(fd, MOST, max(began, size - MOST)))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # the user may have put anything there
            stream.flush()


def _text(tail: bytes | bytearray) -> str:
    return bytes(tail).decode(errors="replace")


class _Ear:
    """A stream that passes on what is written to it, and keeps the tail of what its own thread writes."""

    def __init__(self, stream: Any, tail: bytearray) -> None:
        self._stream, self._tail = stream, tail
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            self._tail += text[-MOST:].encode(errors="backslashreplace")
            del self._tail[:-MOST]
        written: int = self._stream.write(text)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
