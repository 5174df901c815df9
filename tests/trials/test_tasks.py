"""Tables become tasks: numbers recomputed by hand, splits that cover and never leak, and every bad input refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.linear_model import LogisticRegression, Ridge
from table_cases import INDEX, UCI, faults, needs_data, numbered, original, table, write

from search_spaces import Invalid
from trials.tasks import SPLITS, known, load
from trials.tasks.splitting import DEFAULT_FRACTIONS, deal

# -- the bundled tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "inputs", "outputs", "kind"),
    [
        ("uci/breast_cancer", 569, 30, 2, "classification"),
        ("uci/diabetes", 442, 10, 1, "regression"),
        ("uci/digits", 1797, 64, 10, "classification"),
        ("uci/digits-images", 1797, 64, 10, "classification"),
        ("uci/iris", 150, 4, 3, "classification"),
        ("uci/wine", 178, 13, 3, "classification"),
    ],
)
def test_bundled_tables_have_their_known_shapes(name: str, rows: int, inputs: int, outputs: int, kind: str) -> None:
    task = load(name)
    assert (task.name, task.kind, task.inputs, task.outputs) == (name, kind, inputs, outputs)
    assert len(task.classes) == (outputs if kind == "classification" else 0)
    assert len(task.rows(*SPLITS)) == rows
    for split, share in DEFAULT_FRACTIONS.items():
        part = task.rows(split)
        assert part.x.shape == (len(part), inputs)
        assert abs(len(part) - share * rows) <= 1
        assert part.x.dtype == np.float32
        assert part.x.flags.c_contiguous
        assert part.y.dtype == (np.int64 if kind == "classification" else np.float32)


def test_the_bundled_names_are_known_and_no_other() -> None:
    assert known() == (
        "uci/breast_cancer",
        "uci/diabetes",
        "uci/digits",
        "uci/digits-images",
        "uci/iris",
        "uci/wine",
    )
    assert "Did you mean 'uci/digits'" in faults("uci/digit")[0]
    assert "must be a name" in faults(3)[0]


def test_digits_keep_all_pixels_and_their_labels() -> None:
    task = load("uci/digits")
    whole = task.rows(*SPLITS)
    truth = datasets.load_digits()
    key = {tuple(pixels): label for pixels, label in zip(truth.data.astype(int), truth.target, strict=True)}
    assert Counter(map(tuple, truth.data)) == Counter(map(tuple, np.round(whole.x * 16).astype(float)))
    assert all(key[tuple(np.round(x * 16).astype(int))] == y for x, y in zip(whole.x, whole.y, strict=True))


def test_iris_is_standardised_by_its_train_rows_alone() -> None:
    task = load("uci/iris")
    truth = datasets.load_iris()
    np.testing.assert_allclose(task.train.x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(task.train.x.std(axis=0), 1, rtol=1e-5)
    # every original row must come back through one affine map a column, whatever its split
    whole = task.rows(*SPLITS).x.astype(np.float64)
    for column in range(4):
        slope, shift = np.polyfit(np.sort(whole[:, column]), np.sort(truth.data[:, column]), 1)
        np.testing.assert_allclose(np.sort(whole[:, column]) * slope + shift, np.sort(truth.data[:, column]), atol=1e-5)
    assert np.abs(task.test.x.mean(axis=0)).max() > 1e-3


# -- numbers, recomputed -------------------------------------------------------------------------------------------


def test_numbers_text_and_gaps_are_encoded_as_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = [["s", "m", "l"][i] for i in rng.integers(0, 3, 50)]
    rows: list[list[object]] = [
        [i, "?" if i % 7 == 0 else round(rng.normal(5, 2), 3), "?" if i % 11 == 0 else sizes[i], rng.normal(100, 9)]
        for i in range(50)
    ]
    path = write(tmp_path / "t.csv", [["row", "gappy", "size", "price"], *rows])
    task = load(table(path, missing="?"))
    numbers = original(task, rows)
    train = numbers["train"]
    known_cells = np.array([float(rows[i][1]) for i in train if rows[i][1] != "?"])  # type: ignore[arg-type]
    filled = np.array([np.median(known_cells) if rows[i][1] == "?" else rows[i][1] for i in range(50)], float)
    mean, std = filled[train].mean(), filled[train].std()
    prices = np.array([row[3] for row in rows], float)
    for split in SPLITS:
        part, own = task.rows(split), numbers[split]
        np.testing.assert_allclose(part.x[:, 1], (filled[own] - mean) / std, rtol=1e-4, atol=1e-5)
        for value in ("s", "m", "l", "(missing)"):
            column = task.features.index(f"size={value}")
            assert part.x[:, column].tolist() == [float(rows[i][2] == value.replace("(missing)", "?")) for i in own]
        target = (prices[own] - prices[train].mean()) / prices[train].std()
        np.testing.assert_allclose(part.y, target, rtol=1e-4, atol=1e-5)
    assert task.target_scale == pytest.approx((prices[train].mean(), prices[train].std()))
    assert task.features[:2] == ("row", "gappy")
    assert task.inputs == 6
    notes = " ".join(task.notes)
    for word in ("`header: false`", "`task: classification`", "gappy (8)", "size (5)"):
        assert word in notes


def test_no_row_outside_train_changes_the_train_rows(tmp_path: Path) -> None:
    rows = [[*row[:2], "red" if i % 2 else "blue", row[2]] for i, row in enumerate(numbered(60))]
    before = load(table(write(tmp_path / "a.csv", rows)))
    numbers = original(before, rows)
    for i in numbers["outer"] + numbers["selection"] + numbers["test"]:
        rows[i] = [1e9 + i, "unheard of" if i % 3 else "inf", f"colour {i}", 1e7 * i]
    after = load(table(write(tmp_path / "b.csv", rows)))
    np.testing.assert_array_equal(after.train.x, before.train.x)
    np.testing.assert_array_equal(after.train.y, before.train.y)
    assert after.features == before.features
    assert np.isfinite(after.rows(*SPLITS).x).all()
    assert not after.test.x[:, -2:].any()  # a colour that train never saw is none of its colours


def test_splits_are_disjoint_covering_and_repeatable(tmp_path: Path) -> None:
    rows = numbered(53)
    path = write(tmp_path / "t.csv", rows)
    one, two, other = (load(table(path, split_seed=seed)) for seed in (0, 0, 1))
    assert sorted(i for part in original(one, rows).values() for i in part) == list(range(53))
    for split in SPLITS:
        np.testing.assert_array_equal(one.rows(split).x, two.rows(split).x)
        np.testing.assert_array_equal(one.rows(split).y, two.rows(split).y)
    assert original(one, rows) != original(other, rows)
    both = one.rows("test", "train")
    np.testing.assert_array_equal(both.x, np.concatenate([one.test.x, one.train.x]))
    np.testing.assert_array_equal(both.y, np.concatenate([one.test.y, one.train.y]))
    with pytest.raises(Invalid, match="Did you mean 'train'"):
        one.rows("trian")
    with pytest.raises(Invalid, match="at least one split"):
        one.rows()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    groups=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    weights=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_dealing_covers_all_rows_in_proportion(groups: list[int], weights: list[int], seed: int) -> None:
    fractions = {name: weight / sum(weights) for name, weight in zip(SPLITS, weights, strict=True)}
    parts = deal(np.array(groups), fractions, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(groups)))
    assert {groups[i] for i in parts["train"]} == set(groups)
    extra = len(set(groups))  # train is owed the first row of each class
    for name, rows in parts.items():
        assert abs(len(rows) - fractions[name] * len(groups)) <= 1 + extra
        for group, count in Counter(groups).items():
            assert abs(sum(groups[i] == group for i in rows) - fractions[name] * count) <= 3 + extra


def test_default_splits_of_seed_0_never_move() -> None:
    """Searches are compared across versions: a row must not wander from test to train. These numbers are frozen."""
    parts = deal(np.array([0] * 6 + [1] * 6), DEFAULT_FRACTIONS, seed=0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "train": [4, 0, 5, 6, 7],
        "outer": [2, 11, 9],
        "selection": [1, 10],
        "test": [3, 8],
    }


def test_fractions_are_those_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", numbered(100))

    def sizes(**keys: object) -> list[int]:
        return [len(load(table(path, **keys)).rows(split)) for split in SPLITS]

    assert sizes() == [40, 20, 20, 20]
    assert sizes(splits={"train": 0.7}) == [70, 10, 10, 10]
    assert sizes(splits={"train": 0.1, "outer": 0.2, "selection": 0.3, "test": 0.4}) == [10, 20, 30, 40]
    other = write(tmp_path / "test.csv", numbered(7, seed=1))
    assert sizes(test_path=str(other)) == [50, 25, 25, 7]
    assert sizes(test_path=str(other), splits={"train": 0.4, "outer": 0.2, "selection": 0.2}) == [50, 25, 25, 7]


def test_classes_are_stratified_and_rare_ones_reach_train(tmp_path: Path) -> None:
    labels = ["common"] * 60 + ["seldom"] * 20 + ["pair"] * 2 + ["single"]
    rows = [[i, label] for i, label in enumerate(labels)]
    task = load(table(write(tmp_path / "t.csv", rows), split_seed=5))
    assert task.classes == ("common", "pair", "seldom", "single")
    counts = {split: Counter(task.classes[y] for y in task.rows(split).y) for split in SPLITS}
    assert counts["train"]["common"] == pytest.approx(24, abs=1)
    assert counts["test"]["seldom"] == pytest.approx(4, abs=1)
    assert counts["train"]["single"] == 1
    assert counts["train"]["pair"] >= 1
    assert sum(counts.values(), Counter()) == Counter(labels)
    assert any("pair (2), single (1)" in note for note in task.notes)
    numbers = original(task, rows)
    for split in SPLITS:
        assert [labels[i] for i in numbers[split]] == [task.classes[y] for y in task.rows(split).y]


# -- the classic tables in files -----------------------------------------------------------------------------------


def declared(name: str, **keys: object) -> dict[str, object]:
    entry: Mapping[str, Any] = INDEX[name]
    spec = table(f"uci/{entry['file']}", **keys)
    if "test_file" in entry:
        spec["test_path"] = f"uci/{entry['test_file']}"
    return spec | {key: entry[key] for key in ("target", "missing") if key in entry}


@needs_data
@pytest.mark.parametrize("name", INDEX or ["none"])
def test_every_classic_table_loads(name: str) -> None:
    assert UCI is not None
    task = load(declared(name, task=INDEX[name]["kind"]))
    assert task.kind == INDEX[name]["kind"]
    whole = task.rows(*SPLITS)
    assert whole.x.shape == (len(whole), task.inputs)
    assert np.isfinite(whole.x).all()
    assert np.isfinite(whole.y).all()
    files = [INDEX[name][key] for key in ("file", "test_file") if key in INDEX[name]]
    assert len(whole) == sum(sum(1 for line in (UCI / file).read_text().splitlines() if line) for file in files)
    if task.kind == "classification":
        assert set(task.train.y) == set(range(task.outputs))


@pytest.mark.slow
@needs_data
def test_inference_misses_only_the_wines() -> None:
    """Wine quality is a grade from 3 to 9: whole numbers, few, many rows each. Nothing tells it from classes."""
    wrong = [name for name in INDEX if load(declared(name)).kind != INDEX[name]["kind"]]
    assert wrong == ["wine-red", "wine-white"]


@needs_data
@pytest.mark.parametrize("name", ["sonar", "seeds", "german", "banknote", "abalone", "housing", "autos"])
def test_rows_and_targets_still_belong_together(name: str) -> None:
    task = load(declared(name, task=INDEX[name]["kind"]))
    if task.kind == "classification":
        model = LogisticRegression(max_iter=2000).fit(task.train.x, task.train.y)
        majority = np.bincount(task.train.y).argmax()
        assert model.score(task.test.x, task.test.y) > (task.test.y == majority).mean() + 0.02
    else:
        assert Ridge(alpha=1.0).fit(task.train.x, task.train.y).score(task.test.x, task.test.y) > 0.3
