"""The process's memory: what a training step frees, the next one takes again.

>>> keep_freed_memory()
True
"""

from __future__ import annotations

import contextlib
import ctypes


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees (glibc; False elsewhere).

    By default glibc hands buffers of many megabytes back to the system when they are freed, and each that a training
    step takes anew is paged in anew, 4 KiB at a time.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(mmap_threshold, 2**30)) and bool(mallopt(trim_threshold, 2**31 - 1))
    return False


def give_back() -> None:
    """Hand what is free back to the system now: where memory has run out, others, such as Arrow, could have none of
    it (glibc; nothing elsewhere)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
