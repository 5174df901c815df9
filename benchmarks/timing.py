"""Timing competitors against each other: in turn within every round, so that a change in the machine's load meets all.

>>> found = rounds({"gated": step, "plain": plain_step}, repeats=9)
>>> ratio(found, "gated", "plain")  # the median of the rounds' own ratios
1.07
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

Work = Callable[[], object]
LEAST = 0.03  # seconds that one timing should last, so that the clock and the loop do not count


def seconds(work: Work, calls: int, device: torch.device) -> float:
    """Seconds of one call, over so many."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        work()
    _wait(device)
    return (time.perf_counter() - began) / calls


def rounds(
    works: Mapping[str, Work], repeats: int, device: torch.device | str = "cpu", least: float = LEAST
) -> dict[str, list[float]]:
    """Seconds of one call of each, round by round."""
    device, calls = torch.device(device), {}
    for name, work in works.items():
        work()  # kernels are chosen and memory is found here
        calls[name] = max(1, round(least / max(seconds(work, 1, device), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats):
        for name in list(works)[:: 1 if number % 2 else -1]:  # nobody always follows the same one
            found[name].append(seconds(works[name], calls[name], device))
    return found


def ratio(found: Mapping[str, list[float]], over: str, under: str) -> float:
    """How much longer one takes than another."""
    return median(a / b for a, b in zip(found[over], found[under], strict=True))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
