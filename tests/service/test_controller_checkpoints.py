"""Trials that go on from checkpoints, at the controller: which start together, from where, and when files may go."""

from __future__ import annotations

import pytest
import torch
from controller_cases import Crew, controlled, final

from service.budgets import Budgets
from service.controller import Controller, Done
from service.samplers import Asked
from trials import layout
from trials.records import Bundle, Checkpoint, Start
from trials.store import SearchStore, Store


@pytest.fixture
def search(store: Store) -> SearchStore:
    return store.create("s", {"name": "s"})


class Same:
    """Points of one signature, so that all of a generation may be one bundle."""

    def ask(self, history, n, generation):
        numbers = range(len(history.trials), len(history.trials) + n)
        return Asked(points=[{"width.0": 4.0, "lr": 0.01 + i / 100, "batch_size": 16} for i in numbers])


def begun(search: SearchStore, epoch: int = 1, **changes: object) -> Controller:
    how = {"budgets": Budgets(trials=6), "batch": 6, "lanes": 6, "sampler": Same()}
    return controlled(search, epoch, **{**how, **changes})


def keep(search: SearchStore, bundle: Bundle, step: int, trials: tuple[int, ...] | None = None) -> Start:
    """A checkpoint of a bundle's trials, or of those that still train."""
    numbers = trials or tuple(trial.number for trial in bundle.trials)
    tensors = {"x": torch.arange(float(len(numbers)))}
    search.save_checkpoint(
        Checkpoint(bundle_id=bundle.id, attempt=bundle.attempt, step=step, trials=numbers, tensors=tensors)
    )
    return Start(bundle_id=bundle.id, attempt=bundle.attempt, step=step)


def handed_out(controller: Controller, name: str = "n") -> list[Bundle]:
    """All that waits, to a worker each."""
    found: list[Bundle] = []
    while True:
        bundle = controller.pull(f"{name}-{len(found)}", timeout=0.3)
        if bundle is None or isinstance(bundle, Done):
            return found
        found.append(bundle)


def numbers_of(bundles: list[Bundle]) -> list[tuple[list[int], Start | None]]:
    return sorted(([trial.number for trial in bundle.trials], bundle.start) for bundle in bundles)


def files(search: SearchStore) -> list[str]:
    return sorted(path.name for path in layout.checkpoints(search.path).iterdir())


def test_a_lost_bundle_goes_on_from_its_last_checkpoint(search):
    controller = begun(search)
    bundle = controller.pull("w-0", timeout=10)
    assert bundle.start is None
    keep(search, bundle, 10)
    start = keep(search, bundle, 20)
    controller.lost("w-0")
    assert numbers_of(handed_out(controller)) == [([0, 1, 2], start), ([3, 4, 5], start)]


def test_trials_at_different_steps_go_on_apart_and_those_in_no_checkpoint_at_the_beginning(search):
    controller = begun(search)
    whole = controller.pull("w-0", timeout=10)
    first = keep(search, whole, 10, (0, 1, 2, 3, 5))  # 4 had ended before it
    controller.lost("w-0")
    bundles = sorted(handed_out(controller, "v"), key=lambda b: (b.start is None, b.trials[0].number))
    half, other = bundles[:2]
    assert ([t.number for t in half.trials], half.start) == ([0, 1, 2], first)
    assert ([t.number for t in other.trials], other.start) == ([3, 5], first)
    second = keep(search, half, 30)
    controller.close()
    again = begun(search, 2)
    assert numbers_of(handed_out(again)) == [([0, 1, 2], second), ([3, 5], first), ([4], None)]


def test_a_killed_driver_s_trials_go_on_from_their_checkpoints(search):
    controller = begun(search)
    start = keep(search, controller.pull("w-0", timeout=10), 7)
    controller.close()
    (bundle,) = handed_out(begun(search, 2))
    assert (bundle.start, bundle.attempt) == (start, 0)  # it never wrote anything, so its attempt is free
    assert len(bundle.trials) == 6


def test_an_overdue_bundle_s_halves_go_on_too(search):
    controller = begun(search)
    start = keep(search, controller.pull("w-0", timeout=10), 7)
    controller.overdue("w-0", "late")
    assert [bundle.start for bundle in handed_out(controller)] == [start, start]


def test_a_checkpoint_is_there_until_all_its_trials_are_told(search):
    crew = Crew(begun(search))
    bundle = crew.controller.pull("w-0", timeout=10)
    keep(search, bundle, 10)
    crew.controller.lost("w-0")
    for turn, half in enumerate(handed_out(crew.controller)):
        assert files(search), "the other half may need it"
        keep(search, half, 20)
        crew.store(half, crew.outcomes(half))
        crew.controller.finish(half, crew.outcomes(half))
        assert len(files(search)) == (1 if turn == 0 else 0)
    assert len(final(search)) == 6


def test_what_a_killed_driver_left_is_removed_when_its_trials_are_told(search):
    crew = Crew(begun(search))
    bundle = crew.controller.pull("w-0", timeout=10)
    keep(search, bundle, 10)
    crew.store(bundle, crew.outcomes(bundle))  # closed, but its controller was killed before it could tell
    crew.controller.close()
    assert begun(search, 2).over()
    assert not files(search)


def test_a_checkpoint_whose_header_is_torn_starts_nothing(search):
    controller = begun(search)
    keep(search, controller.pull("w-0", timeout=10), 10)
    (name,) = files(search)
    path = layout.checkpoints(search.path) / name
    path.write_bytes(path.read_bytes()[:20])
    controller.lost("w-0")
    assert [bundle.start for bundle in handed_out(controller)] == [None, None]
