"""A worker slot: what of a bundle is durable when, and how many lanes a bundle has at most."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controller_cases import SPACE

from service import preparing, slot
from service.planning import plan_of
from service.progress import DONE, Done
from service.slot import serve, train_and_store
from service.spec import check
from trials import calibrate
from trials.records import Bundle, Checkpoint, Ending, Outcome, Report, Start, Trial, outcome_of
from trials.store import SearchStore, Store
from trials.train import Trainer


class Reporting:
    """Trains nothing: two reports a trial, and notes what of the search is durable when it gets on with the next."""

    code = ""

    def __init__(self, search: SearchStore) -> None:
        self.search, self.seen = search, dict[str, list[int]]()

    def train(self, bundle: Bundle, **_: Any) -> Iterator[Report | Outcome]:
        seen = self.seen[bundle.id] = []
        for step in (1, 2):
            for trial in bundle.trials:
                yield Report(
                    trial_id=trial.id, bundle_id=bundle.id, attempt=bundle.attempt, step=step, metrics={"loss": 1.0}
                )
                seen.append(len(self.search.report_rows(every_attempt=True)))
        for trial in bundle.trials:
            yield outcome_of(trial, bundle, Ending.COMPLETE, value=1.0)


class Desk:
    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self.bundles, self.finished = list(bundles), list[str]()

    def pull(self, worker: str) -> Bundle | Done | None:
        return self.bundles.pop(0) if self.bundles else DONE

    def finish(self, bundle: Bundle, outcomes: Sequence[Outcome]) -> None:
        self.finished.append(bundle.id)


def test_a_slots_first_report_is_durable_at_once_and_those_of_later_bundles_cost_no_writing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "FLUSH_EVERY", 3600.0)
    search = store.create("s", {})
    bundles = [
        Bundle(
            search_id="s",
            id=f"b{i}",
            generation=0,
            trials=tuple(Trial(search_id="s", number=2 * i + j, point={"lr": 0.1}) for j in range(2)),
        )
        for i in range(2)
    ]
    desk, trainer = Desk(bundles), Reporting(search)
    serve(desk, search, trainer, "w-0")  # type: ignore[arg-type]
    assert trainer.seen == {"b0": [1, 1, 1, 1], "b1": [4, 4, 4, 4]}
    assert desk.finished == ["b0", "b1"]
    assert len(search.report_rows(every_attempt=True)) == 8


@pytest.mark.parametrize(("lanes", "room", "used"), [(64, 5.5, 5), (4, 5.5, 4), (8, 0.2, 1)])
def test_lanes_that_a_spec_asks_for_are_bounded_by_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch, lanes: int, room: float, used: int
) -> None:
    spec, task = check(
        {
            "name": "bounded",
            "task": "uci/iris",
            "network": {"kind": "mlp", "layers": 1},
            "space": SPACE.to_dict(),
            "search": {"sampler": "random"},
            "objective": {"metric": "val_loss", "mode": "min"},
            "training": {"epochs": 1},
            "budget": {"trials": 64},
            "resources": {"lanes": lanes},
        }
    )
    plan = plan_of(spec, task)
    needed = calibrate._memory(plan, calibrate._points(plan, 1)[:1])
    monkeypatch.setattr(calibrate, "free_memory", lambda _: needed * room / calibrate.MEMORY_SHARE)
    search = store.create("s", {"name": "s", "spec": spec.to_dict()})
    assert preparing._lanes(search, spec, plan)[0] == used
    search.log_writer(1).append("calibrated", {"lanes": lanes, "way": "looped", "device_s": 0.0})
    assert preparing._lanes(search, spec, plan)[0] == used


NETWORK = """
from torch import nn
from search_spaces.width import WidthGate

class Mine(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(64, {units}), WidthGate("mine", {units}), nn.Linear({units}, outputs)

    def forward(self, x):
        return self.b(self.gate(self.a(x).relu()))
"""


@pytest.mark.parametrize("edited", [False, True])
def test_what_other_code_has_trained_is_nothing_to_go_on_from(store: Store, tmp_path: Path, edited: bool) -> None:
    search, name = store.create("s", {}), f"slot_network_{edited}"
    file = tmp_path / f"{name}.py"
    spec = {
        "task": "uci/digits",
        "network": {"kind": f"{name}:Mine"},
        "space": {"mine": {"type": "width", "low": 2, "high": 8}},
        "training": {"epochs": 2, "lr": 0.1},
        "budget": {"trials": 2},
    }
    trials = tuple(Trial(search_id="s", number=n, point={"mine": 4.0 + n}) for n in range(2))
    bundle = Bundle(search_id="s", id="b0", generation=0, trials=trials)

    def trainer(units: int) -> Trainer:
        file.write_text(NETWORK.format(units=units))
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return Trainer(plan_of(*check(spec, directory=tmp_path)))

    records = trainer(12).train(bundle, checkpoint_every=0.0)
    kept = [record for record in records if isinstance(record, Checkpoint)][20]
    search.save_checkpoint(kept)
    again = replace(bundle, attempt=1, start=Start(bundle_id="b0", attempt=0, step=kept.step))
    outcomes = train_and_store(search, trainer(13 if edited else 12), again, "w")
    assert [outcome.ending for outcome in outcomes] == [Ending.COMPLETE] * 2
    begun = [row["step"] for row in search.report_rows(every_attempt=True).to_pylist() if row["attempt"] == 1]
    whole = {report.step for report in trainer(12).train(bundle) if isinstance(report, Report)}
    assert set(begun) == ({step for step in whole if step > kept.step} if not edited else whole)
