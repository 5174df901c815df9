"""The lane count that measuring chooses: the curve is made up, so that the choice can be known; one run is real."""

from dataclasses import replace

import pytest

from search_spaces import Space
from search_spaces.networks import MLP
from trials import calibrate as measuring
from trials.calibrate import CANDIDATES, calibrate
from trials.hypergradients import Method
from trials.plan import Plan
from trials.records import Ending
from trials.tasks import load
from trials.train import failures
from trials.training import Training

SPACE = Space.from_dict(
    {
        "width.0": {"type": "width", "low": 2, "high": 16},
        "lr": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
        "batch_size": {"type": "choice", "options": [16, 32]},
    }
)


@pytest.fixture(scope="module")
def plan():
    return Plan(space=SPACE, task=load("uci/iris"), network=MLP(layers=1), training=Training(epochs=3))


def up_to(most):
    return [lanes for lanes in CANDIDATES if lanes <= most]


def on_curve(monkeypatch, curve):
    """Seconds per lane as `curve` says; returns the lane counts that were tried."""
    tried = []

    def timed(trainer, points, lanes, least):
        tried.append(lanes)
        return curve(lanes)

    monkeypatch.setattr(measuring, "_timed", timed)
    return tried


def test_the_fastest_per_lane_wins(plan, monkeypatch):
    on_curve(monkeypatch, lambda lanes: abs(lanes - 16) + 1.0)
    found = calibrate(plan, up_to(256))
    assert found.lanes == 16
    assert found.seconds["dense"][16] == min(found.seconds["dense"].values())


def test_one_lane_is_an_answer_and_what_gets_worse_is_not_followed(plan, monkeypatch):
    tried = on_curve(monkeypatch, lambda lanes: float(lanes))
    assert calibrate(plan, up_to(256)).lanes == 1
    assert tried == [1, 2, 4]


def test_of_nearly_equal_counts_the_smallest_wins(plan, monkeypatch):
    on_curve(monkeypatch, lambda lanes: {1: 2.0, 2: 1.5, 4: 1.02, 8: 1.0}.get(lanes, 1.01))
    assert calibrate(plan, up_to(64)).lanes == 4


def test_no_more_than_a_worker_can_be_given(plan, monkeypatch):
    tried = on_curve(monkeypatch, lambda lanes: 1.0 / lanes)
    assert calibrate(plan, up_to(10)).lanes == 8
    assert tried == [1, 2, 4, 8]


def test_what_would_not_fit_into_memory_is_not_tried(plan, monkeypatch):
    inputs, outputs, width, batch = 4, 3, 16, 64
    weights = (inputs + 1) * width + (width + 1) * outputs
    a_lane = 40 * weights + 4.0 * 4 * (2 * width + outputs) * batch  # weights, gradients, state; activations four times
    tried = on_curve(monkeypatch, lambda lanes: 1.0 / lanes)
    monkeypatch.setattr(measuring, "free_memory", lambda device: a_lane * 5 / measuring.MEMORY_SHARE)
    assert calibrate(plan, up_to(256)).lanes == 4
    assert tried == [1, 2, 4]
    monkeypatch.setattr(measuring, "free_memory", lambda device: 1.0)
    assert calibrate(plan, up_to(256)).lanes == 1


def test_a_count_that_a_spec_asks_for_is_cut_off_where_memory_ends(plan, monkeypatch):
    most = measuring.fitting(plan, 10**9)
    monkeypatch.setattr(measuring, "free_memory", lambda device: 1e5)
    tight = measuring.fitting(plan, 10**9)
    assert 1 <= tight < most
    assert measuring.fitting(plan, 1) == 1
    assert measuring.fitting(replace(plan, seeds=2), 10**9) == max(1, tight // 2)
    on_curve(monkeypatch, lambda lanes: 1.0 / lanes)
    assert calibrate(plan, (10**6,)).lanes == tight
    called = Plan(space=SPACE, objective=lambda trial: 0.0, metric="value")
    assert measuring.fitting(called, 10**6) == 10**6


def test_a_method_that_remembers_each_coordinate_wants_more_memory(plan, monkeypatch):
    """Forward mode carries a tangent for each number that moves, and some memberships have one for each unit."""
    monkeypatch.setattr(measuring, "free_memory", lambda device: 1e9)
    moved = Space.from_dict({"width.0": {"type": "width", "low": 2, "high": 16, "moved_by": "gradient"}})
    one, many = (
        replace(plan, space=moved, method=Method(kind="forward"), network=MLP(layers=1, membership=membership))
        for membership in ("band", "fuzzy")
    )
    assert measuring.fitting(many, 10**9) < measuring.fitting(one, 10**9)


def test_measuring_for_real_chooses_a_candidate_and_says_what_it_cost(plan):
    found = calibrate(plan, up_to(4))
    assert found.lanes in CANDIDATES
    assert found.lanes <= 4
    assert set(found.seconds["dense"]) <= {1, 2, 4}
    assert 0 < sum(found.seconds["dense"].values()) < found.device_s


def test_calls_of_plain_python_are_not_measured():
    found = calibrate(Plan(space=SPACE, objective=lambda trial: 0.0, metric="value"), (12,))
    assert (found.lanes, found.seconds, found.device_s) == (12, {}, 0.0)


def test_what_fails_is_not_fast(plan, monkeypatch):
    """A trainer turns an exception into an outcome, at once; that way is never chosen, however quick it was."""
    real = measuring.Trainer.train

    def failing(self, bundle, **options):
        if len(bundle.trials) > 1:
            raise_in = RuntimeError("no such kernel")
            yield from failures(bundle, Ending.ERROR, raise_in, 0.0)
        else:
            yield from real(self, bundle, **options)

    monkeypatch.setattr(measuring.Trainer, "train", failing)
    found = calibrate(plan, (1, 2, 4))
    assert found.lanes == 1
    assert found.seconds["dense"][2] == float("inf")
