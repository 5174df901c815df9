"""How much memory there is left to train in: of this machine, of the container that we are in, or of a GPU; and which
errors say that it ran out.

>>> free_memory(torch.device("cpu")) / 2**30
13.2
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

UNKNOWN = 4e9  # bytes, where the machine does not say
GROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had on a device. On a GPU those that torch keeps for the next tensor are among them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min(_of_machine(), of_group())


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a type for it on GPUs only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _of_machine() -> float:
    try:
        with open("/proc/meminfo") as lines:
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return float(found["MemAvailable"])
    except (OSError, KeyError):
        return UNKNOWN


def of_group(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """What the limits of our control groups, if there are any, leave: a machine's free memory is no use beyond them."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return math.inf
    left = math.inf
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers in ("", "memory"):
            root = groups / controllers
            place = root / path.strip("/")
            # in a container our path may be the host's, of which only the root is seen
            for group in (place, *place.parents):
                left = min(left, _left(group))
                if group == root:
                    break
    return left


def _left(group: Path) -> float:
    """What is left below the limit of one group: pages of files can be had back."""
    for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            limit = (group / most).read_text().strip()
            if limit == "max":
                return math.inf
            used = int((group / now).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        return max(0.0, float(int(limit) - used + int(stat.get("inactive_file", 0))))
    return math.inf
