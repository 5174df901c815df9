"""Records come back bit for bit: floats of every kind, text of every kind, columns of every name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import bits, canonical, closed, outcome, report

from trials import rows
from trials.records import Ending, Outcome, Spent
from trials.store import SearchStore, Store

QUICK = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.fixture
def search(tmp_path: Path) -> SearchStore:
    return Store(tmp_path).create("s", {"name": "digits"})


floats = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True) | st.sampled_from(
    [-0.0, 5e-324, -math.nan]
)
texts = st.text(st.characters(codec="utf-8"), max_size=5) | st.sampled_from(["NaN", "Infinity", "'NaN", "''-Infinity"])
names = st.sampled_from(["loss", "val_error", "step", "value", "Loss", "metric.loss", "arch.width", "ü", "point"])
points = st.dictionaries(texts, floats | st.integers() | st.booleans() | texts | st.none(), max_size=4)
spents = st.builds(Spent, flops=floats, executed_flops=floats, device_s=floats)
outcomes = st.builds(
    Outcome,
    trial_id=texts,
    number=st.integers(0, 2**40),
    bundle_id=st.just("b"),
    attempt=st.just(0),
    ending=st.sampled_from(Ending),
    point=points,
    value=st.none() | floats,
    metrics=st.dictionaries(names, floats, max_size=4),
    rounded=points,
    step=st.integers(-(2**62), 2**62),
    spent=spents,
    started=floats,
    ended=floats,
    worker=texts,
    checkpoint=st.none() | texts,
    error=st.none() | texts,
)


@QUICK
@given(st.lists(outcomes, max_size=5))
def test_outcomes_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, made: list[Outcome]) -> None:
    search = Store(tmp_path_factory.mktemp("store")).create("s", {})
    writer = search.attempt_writer("b", 0)
    for one in made:
        writer.append(one)
    writer.close()
    expected = [bits(vars(one) | {"point": canonical(one.point), "rounded": canonical(one.rounded)}) for one in made]
    assert [bits(vars(one)) for one in search.outcomes(closed_only=False)] == expected


SHOWN = {"loss": "loss", "value": "value", "ü": "ü", "step": "metric.step", "metric.loss": "metric.metric.loss"}


@QUICK
@given(st.lists(st.dictionaries(st.sampled_from(sorted(SHOWN)), floats, max_size=4), min_size=1, max_size=4))
def test_metrics_come_back_as_columns_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, made: list[dict[str, float]]
) -> None:
    search = Store(tmp_path_factory.mktemp("store")).create("s", {})
    writer = search.attempt_writer("b0", 0)
    for step, metrics in enumerate(made):
        writer.append(report(0, step, metrics=metrics, architecture={"width": float(step)}))
        writer.flush()  # each in a segment of its own, with columns of its own
    table = search.reports_table()
    assert table["step"].to_pylist() == list(range(len(made)))
    assert table["arch.width"].to_pylist() == list(range(len(made)))
    seen = {name for metrics in made for name in metrics}
    assert set(table.column_names) == {*rows.REPORTS, "arch.width", *(SHOWN[name] for name in seen)}
    for name in seen:
        assert bits(table[SHOWN[name]].to_pylist()) == bits([metrics.get(name) for metrics in made])


def test_metrics_that_sql_would_take_for_one_another_stay_apart(search: SearchStore) -> None:
    closed(search, report(0, 1, metrics={"Loss": 1.0, "loss": 2.0, "STEP": 3.0}))
    table = search.reports_table()
    assert table.column_names == [*rows.REPORTS, "Loss", "metric.loss", "metric.STEP"]
    assert [table[name].to_pylist() for name in table.column_names[-3:]] == [[1.0], [2.0], [3.0]]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | st.text(max_size=4) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(QUICK, max_examples=300)
@given(json_values)
def test_json_is_valid_and_reads_back_exactly(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = rows.to_json(value)
    json.loads(text, parse_constant=refuse)
    assert bits(rows.from_json(text)) == bits(canonical(value))


def test_what_looks_like_a_number_in_sql_is_one() -> None:
    assert rows.to_json({"a": math.nan, "b": [-math.inf], "c": "NaN", "d": "''Infinity", "e": "NaNo"}) == (
        '{"a": "NaN", "b": ["-Infinity"], "c": "\'NaN", "d": "\'\'\'Infinity", "e": "NaNo"}'
    )
    with pytest.raises(TypeError, match="plain data"):
        rows.to_json({"a": {1, 2}})


def test_text_that_utf8_cannot_hold_is_stored_readably(search: SearchStore) -> None:
    closed(search, outcome(0, error="no such file: \udcff", worker="w\ud800"))
    assert [(o.error, o.worker) for o in search.outcomes()] == [("no such file: \\udcff", "w\\ud800")]


def test_a_record_is_copied_when_it_is_taken(search: SearchStore) -> None:
    metrics, point = {"loss": 1.0}, {"lr": 0.1}
    writer = search.attempt_writer("b0", 0)
    writer.append(report(0, 1, metrics=metrics))
    writer.append(outcome(0, metrics=metrics, point=point))
    metrics["loss"], point["lr"] = 2.0, 0.2
    writer.close()
    assert search.reports_table()["loss"].to_pylist() == [1.0]
    assert search.outcomes() == [outcome(0, metrics={"loss": 1.0})]


def test_a_record_that_cannot_be_stored_does_not_spoil_the_others(search: SearchStore) -> None:
    writer = search.attempt_writer("b0", 0)
    writer.append(outcome(0))
    for wrong in (outcome(1, metrics={"loss": "high"}), outcome(1, point={"x": {1}}), outcome(1, bundle="b9")):
        with pytest.raises((ValueError, TypeError)):
            writer.append(wrong)
    writer.close()
    assert search.outcomes() == [outcome(0)]
