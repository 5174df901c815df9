"""The study of widths: every arm ends within its bound and its budget, and what is printed follows from the runs."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces.cost import mlp_flops

pytestmark = pytest.mark.slow

sys.path.append(str(Path(__file__).parent.parent / "examples"))  # as running the script would
width_baselines, width_study, width_tables = map(
    importlib.import_module, ("width_baselines", "width_study", "width_tables")
)

BOUND, SEEDS, POINTS = 3000, 2, 20


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What `--quick` prints and writes, with two epochs a training."""
    where = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(width_study, "DIGITS", replace(width_study.DIGITS, epochs=2))
        width_study.main(["--quick", "--json", str(where / "study.json"), "--pictures", str(where)])
    return json.loads((where / "study.json").read_text()), where


def test_every_arm_of_every_seed_is_there(quick):
    runs = quick[0]["runs"]
    assert sorted((r["arm"], r["seed"]) for r in runs) == sorted((a, s) for a in width_study.ARMS for s in range(SEEDS))
    assert {"uniform", "tpe", "magnitude", "bn gamma", "elbo"} < set(width_study.ARMS)
    assert {arm.split()[1] for arm in width_study.ARMS if arm.startswith("bilevel")} == set(width_study.MEMBERSHIPS)


def test_every_network_meets_its_bound_and_every_search_its_budget(quick):
    for run in quick[0]["runs"]:
        assert mlp_flops(64, run["widths"], 10) == run["flops"] <= BOUND == run["bound"], run
        assert all(isinstance(n, int) and 2 <= n <= 64 for n in run["widths"])
        assert 0 < run["spent"] <= run["budget"], run
        assert run["trials"] >= 1
        assert 0.03 <= run["lr"] <= 0.12
        assert 0 <= run["test_error"] <= 1


def test_arms_that_nothing_relaxes_have_no_gap_and_the_uniform_one_is_the_widest_that_fits(quick):
    still = [run for run in quick[0]["runs"] if run["arm"] in ("uniform", "tpe", "no move")]
    assert all(run["gap"] == 0 for run in still)
    assert all(run["widths"] == [16, 16] for run in still if run["arm"] == "uniform")
    assert mlp_flops(64, (17, 17), 10) > BOUND


def test_ranks_are_those_of_so_many_points(quick):
    (scores,) = quick[0]["scores"].values()
    assert {len(values) for values in scores.values()} == {POINTS}
    (taus,) = quick[0]["ranking"].values()
    assert set(taus) == {"rounded", "interval", "band, t = 0.3", "band, t = 0.05"}
    assert all(-1 <= low <= tau <= high <= 1 for tau, low, high in taus.values())


def test_networks_along_the_bound_fill_it(quick):
    widths = [tuple(split["widths"]) for split in quick[0]["splits"]]
    assert (16, 18) in widths  # the uniform first layer, and what then fits
    assert len(widths) >= 5
    for a, b in widths:
        assert mlp_flops(64, (a, b), 10) <= BOUND
        assert b == 64 or mlp_flops(64, (a, b + 1), 10) > BOUND
    assert all(0 <= split["test_error"] <= 1 for split in quick[0]["splits"])


def test_the_picture_is_drawn_and_the_table_names_every_arm(quick):
    document, where = quick
    assert (where / "width_study.png").stat().st_size > 10_000
    runs = [width_tables.Run(**{**run, "widths": tuple(run["widths"])}) for run in document["runs"]]
    splits = [width_tables.Split(**split) for split in document["splits"]]
    text = width_tables.as_markdown(runs, splits, document["scores"])
    assert all(f"| {arm} |" in text for arm in width_study.ARMS)
    own = [100 * run.test_error for run in runs if run.arm == "tpe"]
    assert f"{np.mean(own):.2f} ± {np.std(own, ddof=1):.2f}" in text


# -- statistics --------------------------------------------------------------------------------------------------------


def test_sign_flips_and_holm_are_exact():
    assert width_tables.sign_flip(np.full(10, 0.3)) == 2 / 1024
    assert width_tables.sign_flip(np.array([1.0, -1.0])) == 1.0
    assert width_tables.sign_flip(np.array([1.0, 2.0, 3.0, -4.0])) == 14 / 16  # two patterns are nearer to 0 than 2
    assert width_tables.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_tau_knows_order_from_its_reverse():
    truth = [float(i) for i in range(30)]
    found = width_tables.ranked({"same": truth, "reversed": truth[::-1], "retrained": truth})
    assert found["same"] == pytest.approx((1.0, 1.0, 1.0))
    assert found["reversed"] == pytest.approx((-1.0, -1.0, -1.0))


def test_over_all_tables_an_arm_is_judged_by_ratios():
    facts = {
        "widths": (4, 4),
        "bound": 1,
        "lr": 0.1,
        "chosen": 0.1,
        "gap": 0.0,
        "trials": 1,
        "spent": 1.0,
        "budget": 1.0,
        "flops": 1,
    }
    runs = [
        width_tables.Run(setting=task, seed=seed, arm=arm, test_error=error * factor, **facts)
        for task, error in (("easy", 0.01), ("hard", 0.4))
        for seed in range(10)
        for arm, factor in (("uniform", 1.0), ("twice", 2.0), ("even", 1.1 if seed % 2 else 1 / 1.1))
    ]
    found = width_tables.over_all(runs)
    assert np.exp(found["twice"].mean) == pytest.approx(2.0)
    assert (found["twice"].words, found["even"].words) == ("worse", "not shown")
    assert found["twice"].p == 2 * 2 / 1024


# -- what is read off the widest network -------------------------------------------------------------------------------


def widest(kind, lanes=1):
    return width_baselines.Widest(width_study.plan_of(width_study.DIGITS, 0, BOUND), kind, [0.1] * lanes, 16)


@pytest.mark.parametrize("kind", ["magnitude", "bn gamma"])
def test_units_that_do_nothing_are_cut_first_and_at_no_cost(kind):
    nets, kept = widest(kind), [range(0, 64, 5), range(1, 64, 4)]
    with torch.no_grad():
        for i, units in enumerate(kept):
            idle_N = torch.ones(64, dtype=torch.bool)
            idle_N[list(units)] = False
            nets.weights[i + 1][:, :, idle_N] = 0.0
            if kind == "bn gamma":
                nets.scales[i][:, idle_N] = 0.0
    widths = [tuple(map(len, kept))]
    assert nets.errors(widths) == nets.errors()
    assert nets.errors([(3, 3)]) != nets.errors()
    cut = nets.widths()[0]
    assert mlp_flops(64, cut, 10) <= BOUND
    assert cut[0] == 13
    assert 16 < cut[1] < 64  # the bound is met before the last idle unit goes
    assert nets.errors([cut]) == nets.errors()


def test_a_layer_of_the_elbo_begins_where_its_prior_ends_it_and_is_scaled_to_the_bound():
    nets = widest("elbo", lanes=2)
    rate = nets.rate_mean
    assert abs(int(nets._ends(0)[0]) - 16) <= 1
    assert 1 - np.exp(-rate * 16) == pytest.approx(0.9)
    with torch.no_grad():
        nets.log_rates[0][1] -= np.log(2.0)  # twice as many units
    a, b = nets.widths()
    assert a == (16, 16)
    assert 1.8 < b[0] / b[1] < 2.2
    assert BOUND * 0.9 < mlp_flops(64, b, 10) <= BOUND


@pytest.mark.parametrize("kind", width_baselines.KINDS)
def test_training_the_widest_network_learns(kind):
    nets = widest(kind)
    before = float(nets.errors())
    nets.train()
    assert float(nets.errors()) < 0.15 < before
