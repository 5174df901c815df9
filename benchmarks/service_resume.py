"""How long a search of many trials takes to go on after its driver was killed: the log and all outcomes are replayed.

$ python -m benchmarks.service_resume --json
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from search_spaces import Space
from service.budgets import Budgets
from service.controller import Controller
from service.samplers import make_sampler
from trials.plan import Plan
from trials.records import Bundle, Ending, Spent, Trial, outcome_of
from trials.store import SearchStore, Store

SPACE = Space.from_dict({name: {"type": "float", "low": 0.0, "high": 1.0} for name in ("x", "y")})
BATCH = 64  # points of a generation
LANES = 16  # trials of a bundle
SAMPLERS = ("random", "tpe")


def objective(_: Any) -> float:
    """Never called: only what it would have left behind is read."""
    raise AssertionError


def filled(root: Path, trials: int) -> SearchStore:
    """A search in which so many trials have ended, written as its controller and workers would have."""
    search = Store(root).create("many", {"name": "many", "spec": {}})
    log, rng, bundles = search.log_writer(1), np.random.default_rng(0), 0
    for generation, first in enumerate(range(0, trials, BATCH)):
        members = [
            Trial(search_id="many", number=number, point=SPACE.sample(rng))
            for number in range(first, min(first + BATCH, trials))
        ]
        asked = [{"number": trial.number, "point": trial.point} for trial in members]
        log.append("asked", {"generation": generation, "trials": asked, "infeasible": []})
        for begin in range(0, len(members), LANES):
            _ended(search, f"b{bundles:06d}", generation, members[begin : begin + LANES])
            numbers = [trial.number for trial in members[begin : begin + LANES]]
            log.append("told", {"bundle": f"b{bundles:06d}", "attempt": 0, "numbers": numbers})
            bundles += 1
    return search


def _ended(search: SearchStore, bundle_id: str, generation: int, members: list[Trial]) -> None:
    bundle = Bundle(search_id="many", id=bundle_id, generation=generation, trials=tuple(members))
    writer = search.attempt_writer(bundle_id, 0)
    for trial in members:
        value = float(np.sum(SPACE.encode(trial.point)))
        facts: dict[str, Any] = {"value": value, "metrics": {"value": value}, "spent": Spent(device_s=1.0)}
        writer.append(outcome_of(trial, bundle, Ending.COMPLETE, **facts))
    writer.close()


def resumed(search: SearchStore, trials: int, sampler: str) -> dict[str, float]:
    """Seconds from opening the store until all is replayed, and until the first new bundle is handed out."""
    plan = Plan(space=SPACE, objective=objective, metric="value")
    chosen = make_sampler(sampler, SPACE, seed=0)
    began = time.perf_counter()
    fresh = Store(search.path.parent.parent).search(search.id)
    with fresh.lease() as lease:
        budgets = Budgets(trials=trials + BATCH)
        writer = fresh.log_writer(lease.epoch)
        controller = Controller(fresh, writer, plan, chosen, budgets=budgets, batch=BATCH, lanes=LANES)
        replayed = time.perf_counter() - began
        bundle = controller.pull("worker", timeout=600.0)
        first = time.perf_counter() - began
        assert isinstance(bundle, Bundle)
        assert controller.progress().endings == {"complete": trials}
        controller.close()
    return {"replayed_s": replayed, "first_bundle_s": first}


def figures(counts: tuple[int, ...]) -> dict[str, Any]:
    """`resume_<trials>_<sampler>`: what `resumed` measures, each on a store of its own."""
    found: dict[str, Any] = {}
    for trials in counts:
        for sampler in SAMPLERS:
            root = Path(tempfile.mkdtemp(prefix="continua-resume-"))
            try:
                found[f"resume_{trials}_{sampler}"] = resumed(filled(root, trials), trials, sampler)
            finally:
                shutil.rmtree(root)
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="1,000 trials only")
    options = parser.parse_args()
    found = figures((1000,) if options.quick else (10_000, 100_000))
    if options.json:
        print(json.dumps(found))
        return
    for name, seconds in found.items():
        print(f"{name:24}  replayed {seconds['replayed_s']:6.2f} s, first bundle {seconds['first_bundle_s']:6.2f} s")


if __name__ == "__main__":
    main()
