"""The machine under the measurements: what it is, how fast it multiplies matrices, how much memory a system takes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "optuna", "numpy")


def facts() -> dict[str, Any]:
    """The processor, its cores, Python, and the versions of the libraries that are compared."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        **versions,
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# -- matrix products ---------------------------------------------------------------------------------------------------


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """The least seconds that `work` took in `repeats` tries."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def square_gflops(size: int = 1024, repeats: int = 8, device: str = "cpu") -> float:
    """The rate of a large square float32 product in torch, on the threads that torch has."""
    import torch

    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    out = torch.empty(size, size, device=device)

    def multiply() -> None:
        torch.mm(a, b, out=out)
        if out.is_cuda:
            torch.cuda.synchronize()

    multiply()
    return 2e-9 * size**3 / best_of(repeats, multiply)


def job_shapes_gflops(networks: Sequence[Sequence[int]], batch: int, repeats: int = 5) -> float:
    """The rate of the products alone of one training step of each network (its sizes from inputs to outputs).

    FLOPs are counted as the job counts them: without biases and without the first layer's input gradient.
    """
    import torch

    products, flops = [], 0
    for sizes in networks:
        for i, (a, b) in enumerate(pairwise(sizes)):
            w, h, d = torch.randn(b, a + 1), torch.randn(a + 1, batch), torch.randn(b, batch)
            products += [(w, h, torch.empty(b, batch)), (d, h.mT, torch.empty(b, a + 1))]
            flops += 4 * a * b * batch
            if i:
                products.append((w[:, 1:].mT, d, torch.empty(a, batch)))
                flops += 2 * a * b * batch

    def step() -> None:
        for left, right, out in products:
            torch.mm(left, right, out=out)

    def steps() -> None:
        for _ in range(10):
            step()

    step()
    return 1e-9 * 10 * flops / best_of(repeats, steps)


# -- others on the machine ---------------------------------------------------------------------------------------------


class Others:
    """How many cores other processes used meanwhile: `cores`, None where the system does not say (it is Linux's).

    Ours are this process and those descendants that ended and were waited for.
    """

    def __init__(self) -> None:
        self.cores: float | None = None

    def __enter__(self) -> Others:
        self._began, self._ours, self._all = time.perf_counter(), sum(os.times()[:4]), _busy_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        busy = _busy_seconds()
        if busy is not None and self._all is not None:
            ours = sum(os.times()[:4]) - self._ours
            self.cores = max(0.0, busy - self._all - ours) / (time.perf_counter() - self._began)


def _busy_seconds() -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        user, nice, system = Path("/proc/stat").read_text().split()[1:4]
        return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
    return None


# -- memory ------------------------------------------------------------------------------------------------------------


class Memory:
    """Watches a process and its descendants (Linux): `together_mb` is the greatest sum of their proportional shares
    seen, `largest_mb` the greatest peak of a single one. Both None elsewhere."""

    def __init__(self, pid: int, every: float = 0.25) -> None:
        self.pid, self.every = pid, every
        self.together_mb: float | None = None
        self.largest_mb: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            family = _family(self.pid)
            shares = [_kilobytes(pid, "smaps_rollup", "Pss") for pid in family]
            peaks = [_kilobytes(pid, "status", "VmHWM") for pid in family]
            if any(shares):
                self.together_mb = max(self.together_mb or 0.0, sum(shares) / 1024)
                self.largest_mb = max(self.largest_mb or 0.0, max(peaks) / 1024)


def _family(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for member in family:  # grows as it goes
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _kilobytes(pid: int, file: str, key: str) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return float(line.split()[1])
    return 0.0
