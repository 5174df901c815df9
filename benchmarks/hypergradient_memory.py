"""The memory that a derivative through training takes at its peak, in a process of its own.

    python -m benchmarks.hypergradient_memory reversible 1000        # one JSON object

Counted twice over the same work. `live_bytes` follows every tensor that torch's allocator gives and takes back, by the
profiler's record of them: exact, and all that it counts is tensors. `resident_bytes` is how far the process grew, with
graph nodes, Python objects and what malloc wastes, to the nearest few hundred kB. The training's batches are there
before either begins; `batch_bytes` are theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.hypergradient_cases import Case
from trials.hypergradients.reversible import Rewound

ROOT = Path(__file__).parents[1]
WARM = 3  # steps


def live_bytes(work: Callable[[], object]) -> int:
    """The most bytes in tensors made by `work`, of those that live at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler
    assert results is not None
    records = results.kineto_results.events()
    events = [(record.start_ns(), record.nbytes()) for record in records if record.name() == "[memory]"]
    live = most = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        live += change
        most = max(most, live)
    return most


def resident_bytes(work: Callable[[], object]) -> int:
    """How much more of this process was resident at the peak of `work` than before it; where the system does not let
    the peak be forgotten, how much the peak of the whole process rose."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # free memory that is still resident would be taken again unseen
    peak_began = _rusage_bytes()
    before = None
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM is VmRSS from here
        before = _status_bytes("VmRSS")
    work()
    after = None if before is None else _status_bytes("VmHWM")
    return _rusage_bytes() - peak_began if before is None or after is None else after - before


def _status_bytes(key: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return None


def _rusage_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measured(name: str, steps: int) -> dict[str, Any]:
    """Both counts for one lane, and of `reversible` what it remembered."""
    torch.set_num_threads(1)
    case = Case(name, steps=steps)
    batches, outer = case.batches()
    case.derivative(batches[:WARM], outer)  # kernels are chosen and modules imported here
    found: list[Any] = []
    # the resident first: the profiler's own records stay
    row: dict[str, Any] = {"resident_bytes": resident_bytes(lambda: found.append(case.derivative(batches, outer)))}
    if isinstance(found[0], Rewound):
        row |= {"bits_per_weight_step": found[0].bits_per_weight_step, "information_bits": found[0].information}
    row["live_bytes"] = live_bytes(lambda: case.derivative(batches, outer))
    row["batch_bytes"] = sum(batch.x.nbytes + batch.y_BO.nbytes for batch in batches)
    return {"method": name, "steps": steps, **row}


def alone(name: str, steps: int) -> dict[str, Any]:
    """The same in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.hypergradient_memory", name, str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}, {steps} steps: ended with exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
