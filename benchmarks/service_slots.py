"""Parallel efficiency of worker slots: bundles that only sleep, so that all time beyond the sleep is orchestration.

    $ python -m benchmarks.service_slots --json

Slots are worker processes of the local executor, all started before the clock is. Efficiency is the time slept over the
time that slots were at work, each from its second trial to its last: with the first outcome, a process imports what it
takes to write one. `ramp_s` is how much later the last slot began than the first. Sleeping takes no core, so that 64
slots fit a machine of two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from service.driver import run
from service.executors.local import Bench
from service.spec import check
from trials.records import Outcome
from trials.store import Store

SLEEP = 1.0  # seconds of a bundle
ROUNDS = 8  # bundles a slot
COUNTS = (1, 2, 4, 8, 16, 32, 64)
SPEC: dict[str, Any] = {
    "name": "sleeping",
    "task": "benchmarks.service_slots:objective",
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "search": {"sampler": "random"},
    "objective": {"metric": "value", "mode": "min"},
}


def objective(trial: Any) -> float:
    """Sleeps for a bundle's time."""
    time.sleep(SLEEP)
    return float(trial["x"])


def efficiency(slots: int, bench: Bench, rounds: int = ROUNDS) -> tuple[float, float]:
    """The share of the slots' time that was slept, and the ramp."""
    outcomes: list[Outcome] = []
    for trials in (slots, slots * rounds):  # the first search starts every worker
        data = {
            **SPEC,
            "search": {"sampler": "random", "batch": 2 * slots},
            "budget": {"trials": trials},
            "resources": {"workers": slots, "lanes": 1},
        }
        spec, task = check(data)
        with tempfile.TemporaryDirectory(prefix="continua-slots-") as root:
            result = run(spec, task, Store(root), executor="local", bench=bench)
            outcomes = Store.open_for_reading(root).search(result.search_id).outcomes()
        assert len(outcomes) == trials
    by_slot: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.started):
        by_slot.setdefault(outcome.worker, []).append(outcome)
    later = [own[1:] for own in by_slot.values() if len(own) > 1]
    at_work = sum(own[-1].ended - own[0].started for own in later)
    begun = [own[0].started for own in by_slot.values()]
    return sum(map(len, later)) * SLEEP / at_work, max(begun) - min(begun)


def figures(counts: tuple[int, ...] = COUNTS, rounds: int = ROUNDS) -> dict[str, Any]:
    """`efficiency_<slots>` and `ramp_s_<slots>`."""
    found: dict[str, Any] = {}
    with Bench() as bench:
        for slots in counts:
            found[f"efficiency_{slots}"], found[f"ramp_s_{slots}"] = efficiency(slots, bench, rounds)
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="up to four slots")
    options = parser.parse_args()
    found = figures((1, 2, 4), 3) if options.quick else figures()
    print(json.dumps(found) if options.json else "\n".join(f"{name:16} {share:.3f}" for name, share in found.items()))


if __name__ == "__main__":
    main()
