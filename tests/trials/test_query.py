"""SQL over a small store made by hand: what each table says, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from search_spaces.faults import Invalid
from trials.query import query
from trials.records import Ending, Outcome, Report, Spent, trial_id
from trials.store import SearchStore, Store


def outcome(number: int, bundle: str, ending: Ending = Ending.COMPLETE, attempt: int = 0, **other: Any) -> Outcome:
    facts: dict[str, Any] = {"point": {"lr": 0.1}, "step": 10, **other}
    return Outcome(
        trial_id=trial_id("digits-1", number), number=number, bundle_id=bundle, attempt=attempt, ending=ending, **facts
    )


def report(number: int, bundle: str, step: int, attempt: int = 0, **other: Any) -> Report:
    return Report(trial_id=trial_id("digits-1", number), bundle_id=bundle, attempt=attempt, step=step, **other)


def write(search: SearchStore, *records: Outcome | Report) -> None:
    writer = search.attempt_writer(records[0].bundle_id, records[0].attempt)
    for record in records:
        writer.append(record)
    writer.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One search of six trials: 0 complete, 1 with a NaN value, 2 failed, 3 promoted twice, 4 retried, 5 running."""
    store = Store(tmp_path)
    search = store.create("digits-1", {"name": "digits <script>"})
    log = search.log_writer(1)
    trials = [{"number": number, "point": {"lr": number / 10, "kind": "NaN"}} for number in range(6)]
    log.append_many(
        [("asked", {"generation": g, "trials": trials[3 * g : 3 * g + 3]}) for g in range(2)]
        + [("state", {"state": "paused"}), ("state", {"state": "complete"})]
    )
    spent = Spent(flops=2.0, executed_flops=3.0, device_s=0.5)
    write(
        search,
        report(0, "b0", 5, metrics={"val_error": 0.5, "step": 7.0}, architecture={"width.0": 3.5}, spent=spent),
        report(0, "b0", 10, metrics={"val_error": math.nan}, architecture={"width.0": 4.5}, spent=spent),
        outcome(0, "b0", value=0.25, metrics={"val_error": 0.25}, spent=spent, started=100.0, ended=101.5),
        outcome(1, "b0", value=math.nan, metrics={"val_error": math.inf}),
        outcome(2, "b0", Ending.ERROR, value=0.01, point={"lr": math.nan}, rounded={"lr": 1}, error="no <such> key"),
    )
    write(search, outcome(3, "b2", value=0.75, step=20))
    write(search, outcome(3, "b1", Ending.PRUNED, value=0.5))
    for bundle in ("b1", "b2"):
        log.append("told", {"bundle": bundle, "attempt": 0, "numbers": [3]})
    write(search, outcome(4, "b4", Ending.PREEMPTED, attempt=0))
    write(search, outcome(4, "b4", value=-1.5, attempt=1))
    log.append("told", {"bundle": "b4", "attempt": 1, "numbers": [4]})
    live = search.attempt_writer("b5", 0)
    live.append(report(5, "b5", 1, metrics={"val_error": 0.125}))
    live.append(outcome(5, "b5", value=9.0))
    live.flush()
    return store


def ask(store: Store, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in query(store, sql).to_pylist()]


def test_one_row_a_trial_its_last_attempt_that_counts(store: Store) -> None:
    sql = "SELECT number, generation, bundle_id, attempt, ending, value, step FROM trials"
    assert ask(store, sql) == [
        (0, 0, "b0", 0, "complete", 0.25, 10),
        (1, 0, "b0", 0, "complete", None, 10),
        (2, 0, "b0", 0, "error", None, 10),
        (3, 1, "b2", 0, "complete", 0.75, 20),
        (4, 1, "b4", 1, "complete", -1.5, 10),
        (5, 1, None, None, "running", None, None),
    ]


def test_the_columns_that_are_promised(store: Store) -> None:
    promised = {
        "searches": "search_id name state created trials",
        "trials": "search_id trial_id number attempt ending value device_seconds flops executed_flops started ended "
        "point rounded generation bundle_id step worker error val_error",
        "reports": "search_id trial_id step val_error flops executed_flops device_seconds arch.width.0",
    }
    for name, columns in promised.items():
        assert set(columns.split()) <= set(query(store, f"FROM {name}").column_names)


def test_points_are_json_asked_and_where_they_ended(store: Store) -> None:
    found = ask(store, "SELECT asked, point, rounded FROM trials ORDER BY number")
    assert [json.loads(asked)["lr"] for asked, _, _ in found] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert json.loads(found[2][1]) == {"lr": "NaN"}
    assert json.loads(found[2][2]) == {"lr": 1}
    assert found[5][1:] == (found[5][0], None)
    assert ask(store, "SELECT (point->>'lr')::DOUBLE FROM trials WHERE number = 0") == [(0.1,)]
    (value,) = ask(store, "SELECT (point->>'lr')::DOUBLE FROM trials WHERE number = 2")[0]
    assert math.isnan(value)


def test_the_best_is_never_nan_in_either_direction(store: Store) -> None:
    for order, best in (("ASC", 4), ("DESC", 3)):
        assert ask(store, f"SELECT number FROM trials ORDER BY value {order} NULLS LAST LIMIT 1") == [(best,)]
    assert ask(store, "SELECT max(value), min(value) FROM trials") == [(0.75, -1.5)]
    assert ask(store, "SELECT val_error FROM trials WHERE number = 1") == [(math.inf,)]


def test_what_a_trial_cost_and_when(store: Store) -> None:
    sql = "SELECT device_seconds, flops, executed_flops, started, ended - started FROM trials WHERE number = 0"
    assert ask(store, sql) == [(0.5, 2.0, 3.0, 100.0, 1.5)]
    assert ask(store, "SELECT error FROM trials WHERE error IS NOT NULL") == [("no <such> key",)]


def test_reports_have_a_column_a_metric_and_the_live_architecture(store: Store) -> None:
    sql = 'SELECT trial_id, step, val_error, "metric.step", "arch.width.0" FROM reports ORDER BY trial_id, step'
    found = ask(store, sql)
    assert found[0] == ("digits-1-t000000", 5, 0.5, 7.0, 3.5)
    assert found[1][:2] == ("digits-1-t000000", 10)
    assert math.isnan(found[1][2])
    assert found[1][3:] == (None, 4.5)
    assert found[2] == ("digits-1-t000005", 1, 0.125, None, None)
    joined = "SELECT count(*) FROM reports JOIN trials USING (search_id, trial_id) WHERE ending = 'running'"
    assert ask(store, joined) == [(1,)]


def test_searches_are_summed_up(store: Store, tmp_path: Path) -> None:
    store.create("new", {})
    sql = "SELECT search_id, name, state, trials, complete, running, failed, device_seconds FROM searches"
    assert ask(store, sql) == [
        ("digits-1", "digits <script>", "complete", 6, 4, 1, 1, 0.5),
        ("new", "new", "interrupted", 0, 0, 0, 0, 0.0),
    ]
    with store.search("new").lease():  # a search runs while somebody owns it
        assert ask(store, "SELECT state FROM searches WHERE name = 'new'") == [("running",)]
    created = dict(ask(store, "SELECT search_id, created FROM searches"))
    assert created["digits-1"] == store.search("digits-1").log()[0].time
    assert created["new"] == (tmp_path / "searches/new/spec.json").stat().st_mtime


def test_searches_stand_side_by_side_with_metrics_of_their_own(store: Store) -> None:
    other = store.create("other", {})
    write(other, Outcome(trial_id="x", number=0, bundle_id="b0", attempt=0, ending=Ending.COMPLETE, point={},
                         value=1.0, metrics={"accuracy": 0.5}))  # fmt: skip
    sql = "SELECT search_id, trial_id, accuracy, val_error FROM trials WHERE number = 0 ORDER BY search_id"
    assert ask(store, sql) == [("digits-1", "digits-1-t000000", None, 0.25), ("other", "x", 0.5, None)]


def test_an_untold_attempt_changes_nothing_of_what_was_told(store: Store) -> None:
    before = ask(store, "SELECT * FROM trials ORDER BY number")
    write(store.search("digits-1"), outcome(3, "z0", value=3.0, step=30), outcome(4, "z0", value=4.0, step=30))
    assert ask(store, "SELECT * FROM trials ORDER BY number") == before


def test_an_empty_store_answers(tmp_path: Path) -> None:
    store = Store.open_for_reading(tmp_path)
    for name in ("searches", "trials", "reports"):
        assert query(store, f"SELECT * FROM {name}").num_rows == 0
    assert ask(store, "SELECT count(*), max(value) FROM trials") == [(0, None)]


def test_damage_costs_its_rows_alone(store: Store) -> None:
    final = next((store.root / "searches/digits-1/metrics/b4.1").glob("final*"))
    final.write_bytes(final.read_bytes()[:-1])
    (store.root / "searches/digits-1/spec.json").write_text("{")
    assert ask(store, "SELECT number FROM trials WHERE ending = 'running'") == [(4,), (5,)]
    assert ask(store, "SELECT name FROM searches") == [("digits-1",)]


@pytest.mark.parametrize(
    "sql",
    [
        "WITH t AS (SELECT value FROM trials) SELECT count(*) FROM t",
        "FROM trials SELECT number LIMIT 1",
        "SUMMARIZE trials",
        "DESCRIBE reports",
        "SHOW TABLES",
        "SELECT x FROM (SELECT unnest([1, 2]) AS x)",
        "SELECT * FROM unnest([1, 2]) AS u(x)",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 9) SELECT * FROM r",
        "SELECT search_id, row_number() OVER (PARTITION BY ending ORDER BY number) FROM trials",
        "SELECT list_transform([1, 2], lambda x: x * 2), coalesce(1, 2), CASE WHEN true THEN 1 END, 1 IN (1, 2)",
        "SELECT count(*) FILTER (WHERE value > 0), quantile_cont(value, 0.5), arg_min(number, value) FROM main.trials",
        "SELECT 1 -- a remark; and another",
        "SELECT ';' AS semicolon;",
        "VALUES (1)",
    ],
)
def test_any_one_select_is_answered(store: Store, sql: str) -> None:
    assert query(store, sql).num_rows > 0


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT 1; SELECT 2", "exactly one SELECT"),
        ("", "exactly one SELECT"),
        ("-- nothing", "exactly one SELECT"),
        ("COPY trials TO '{path}'", "got COPY"),
        ("COPY (SELECT 1) TO '{path}'", "got COPY"),
        ("ATTACH '{path}'", "got ATTACH"),
        ("PRAGMA table_info('trials')", "got PRAGMA"),
        ("PRAGMA database_list", "exactly one SELECT"),
        ("INSERT INTO trials VALUES (1)", "got INSERT"),
        ("UPDATE trials SET value = 0", "got UPDATE"),
        ("DELETE FROM trials", "got DELETE"),
        ("DROP VIEW trials", "got DROP"),
        ("CREATE TABLE t (a INT)", "got CREATE"),
        ("SET threads = 1", "got SET"),
        ("SET enable_external_access = true", "got SET"),
        ("INSTALL httpfs", "got LOAD"),
        ("LOAD httpfs", "got LOAD"),
        ("EXPORT DATABASE '{path}'", "exactly one SELECT"),
        ("CALL duckdb_settings()", "got CALL"),
        ("EXPLAIN SELECT 1", "got EXPLAIN"),
        ("SELECT * FROM read_csv('/etc/passwd')", "got the table function 'read_csv'"),
        ("SELECT * FROM read_text('/etc/passwd')", "table function"),
        ("SELECT * FROM read_blob('/etc/*')", "table function"),
        ("SELECT * FROM glob('/etc/*')", "table function"),
        ("SELECT * FROM read_parquet('https://example.org/x.parquet')", "but got"),
        ("SELECT * FROM '/etc/passwd'", "unknown table"),
        ("SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')", "table function"),
        ("WITH x AS (DELETE FROM trials RETURNING *) FROM x", "but got"),
        ("SELECT * FROM sys", "unknown table"),
        ('SELECT * FROM "table"', "unknown table"),  # a variable of ours where the statement is run
        ("SELECT getenv('HOME')", "unknown function 'getenv'"),
        ("SELECT main.getenv('HOME')", "unknown function 'getenv'"),
        ("SELECT current_setting('threads')", "unknown function 'current_setting'"),
        ("SELECT lower(list_transform(['a'], lambda x: getenv(x))[1])", "unknown function 'getenv'"),
        ("SELECT 1 ORDER BY getenv('HOME')", "unknown function 'getenv'"),
        ("SELECT 1 WHERE EXISTS (SELECT getenv('HOME'))", "unknown function 'getenv'"),
        ("SELECT pg_sleep(9)", "unknown function 'pg_sleep'"),
        ("SELECT * FROM unnest(list_value(getenv('HOME')))", "unknown function 'getenv'"),
        ("SELECT * FROM range(9)", "table function 'range'"),
        ("SELECT * FROM duckdb_settings()", "table function 'duckdb_settings'"),
        ("SELECT * FROM duckdb_tables", "unknown table 'duckdb_tables'"),
        ("SELECT column_name FROM information_schema.columns", "unknown table 'information_schema.columns'"),
        ("SELECT * FROM pg_catalog.pg_settings", "unknown table"),
        ("SHOW DATABASES", "DESCRIBE"),
        ("DESCRIBE (SELECT * FROM read_csv('/etc/passwd'))", "table function"),
        ("SELECT * FROM duckdb_tables, (WITH duckdb_tables AS (SELECT 1) FROM duckdb_tables)", "'duckdb_tables'"),
        ("WITH a AS (FROM pg_class), pg_class AS (SELECT 1) FROM a", "unknown table 'pg_class'"),
        ("WITH a AS (SELECT getenv('HOME')) SELECT 1", "unknown function 'getenv'"),
        ("UNPIVOT '/etc/passwd' ON x", "unknown table '/etc/passwd'"),
        ("SELEC 1", "syntax error"),
        ("SELECT 'a'::INT", "Conversion Error"),
        ("SELECT 1 WHERE $1", "but got"),
        ("SELECT '\0", "but got"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(store: Store, tmp_path: Path, sql: str, reason: str) -> None:
    path = tmp_path / "taken.out"
    with pytest.raises(Invalid, match=reason) as caught:
        query(store, sql.format(path=path))
    assert caught.value.faults[0].startswith("sql: ")
    assert len(str(caught.value).splitlines()) == 1
    assert not path.exists()


def test_unknown_names_suggest_the_nearest(store: Store) -> None:
    with pytest.raises(Invalid, match=r"unknown table 'trial'\. Did you mean 'trials'"):
        query(store, "SELECT * FROM trial")
    for sql in ("SELECT val_eror FROM trials", "SELECT trials.val_eror FROM trials", "SELECT t.val_eror FROM trials t"):
        with pytest.raises(Invalid, match=r"unknown column 'val_eror'\. Did you mean 'val_error'"):
            query(store, sql)


def test_asking_changes_nothing(store: Store, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    query(store, "SELECT * FROM trials, reports, searches")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
