"""SQL from strangers: it sees three tables and nothing else, and whatever it takes, the next question is answered."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces.faults import Invalid
from service.sandbox import MIB, Busy, Limits, Sandbox, TooMuch
from trials.store import Store

SMALL = Limits(rows=1000, size=MIB, memory=192 * MIB, address_space=1280 * MIB, cpu=2, wall=4.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sandbox") / "store"
    Store(path).create("one-1", {"name": "one"})
    return path


@pytest.fixture(scope="module")
def sandbox(root: Path) -> Iterator[Sandbox]:
    with Sandbox(root, SMALL) as found:
        found.warm()
        yield found


def ok(sandbox: Sandbox) -> bool:
    return sandbox.ask("SELECT name FROM searches").table.to_pylist() == [{"name": "one"}]


ENDLESS = "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT length(repeat('x', 1000000000) || repeat('y', 1000000000) || repeat('z', 1000000000))",
        pytest.param("SELECT repeat('x', 1000000000) FROM searches", marks=pytest.mark.long),
        pytest.param(
            "WITH RECURSIVE r AS (SELECT 'x' AS n UNION ALL SELECT n || n FROM r) SELECT max(length(n)) FROM r",
            marks=pytest.mark.long,
        ),
        "SELECT list(a) FROM (SELECT unnest(generate_series(1, 1000000000)) AS a)",
        ENDLESS,
    ],
)
def test_a_bomb_is_stopped_and_the_next_is_answered(sandbox: Sandbox, sql: str) -> None:
    with pytest.raises(TooMuch, match="less than"):
        sandbox.ask(sql)
    assert ok(sandbox)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('{path}')",
        "SELECT * FROM read_text('{path}')",
        "SELECT * FROM read_blob('/etc/*')",
        "SELECT * FROM read_json('{path}')",
        "SELECT * FROM read_parquet('{path}')",
        "SELECT * FROM parquet_metadata('{path}')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '{path}'",
        'SELECT * FROM "{path}"',
        "FROM '{path}' SELECT *",
        "SELECT * FROM (SELECT * FROM '{path}')",
        "SELECT (SELECT content FROM read_text('{path}'))",
        "SELECT * FROM query('SELECT * FROM ''{path}''')",
        "SELECT * FROM query_table('{path}')",
        "SELECT * FROM sniff_csv('{path}')",
        "DESCRIBE '{path}'",
        "SUMMARIZE '{path}'",
        "SELECT * FROM searches WHERE name IN (SELECT content FROM read_text('{path}'))",
        "WITH a AS MATERIALIZED (SELECT * FROM read_text('{path}')) SELECT * FROM a",
        "PIVOT '{path}' ON a",
        "UNPIVOT '{path}' ON a",
        "SELECT * FROM searches POSITIONAL JOIN '{path}'",
        "SELECT * FROM searches, LATERAL (SELECT * FROM read_text(name))",
        "COPY searches TO '{path}.out'",
        "COPY searches FROM '{path}'",
        "ATTACH '{path}'",
        "EXPORT DATABASE '{path}.out'",
        "IMPORT DATABASE '{path}'",
        "INSTALL httpfs",
        "LOAD '{path}'",
        "CREATE TABLE t AS SELECT 1",
        "CREATE MACRO m(x) AS x",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "PRAGMA database_list",
        "PRAGMA enable_profiling",
        "SET memory_limit = '100GB'",
        "RESET memory_limit",
        "SET VARIABLE x = 1",
        "USE memory",
        "CHECKPOINT",
        "CALL pragma_version()",
        "SELECT 1; DROP TABLE searches",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM duckdb_logs",
        "SELECT * FROM pragma_database_list",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM sqlite_master",
        "SELECT getenv('HOME')",
        "SELECT list_transform(['HOME'], lambda x: getenv(x))",
        "SELECT current_setting('home_directory')",
        "SELECT getvariable('x')",
        "SELECT write_log('x')",
        "SELECT sleep_ms(100000)",
        "SELECT version()",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pandas_scan(1)",
        "SELECT * FROM sys",
        "SELECT * FROM known",
        "SELECT " + "(" * 20_000 + "1" + ")" * 20_000,
        "SELECT '" + "x" * 100_000 + "'",
        "\0",
        "SELECT 1 /* ",
    ],
)
def test_nothing_but_the_tables_is_seen(sandbox: Sandbox, tmp_path: Path, sql: str) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("a\nhunter2\n")
    with pytest.raises(Invalid) as caught:
        sandbox.ask(sql.replace("{path}", str(path)))
    assert caught.value.faults[0].startswith("sql: ")
    assert "hunter2" not in str(caught.value)
    assert os.listdir(tmp_path) == ["secret.csv"]


def test_after_all_that_it_answers(sandbox: Sandbox) -> None:
    assert ok(sandbox)


def test_long_answers_are_cut_by_rows_and_by_bytes(sandbox: Sandbox) -> None:
    found = sandbox.ask("SELECT unnest(generate_series(1, 5000)) AS n")
    assert (found.table.num_rows, found.cut) == (1000, "rows")
    assert found.table["n"].to_pylist() == list(range(1, 1001))
    exact = sandbox.ask("SELECT unnest(generate_series(1, 1000)) AS n")
    assert (exact.table.num_rows, exact.cut) == (1000, "")
    wide = sandbox.ask("SELECT repeat('x', 10000) AS t FROM (SELECT unnest(generate_series(1, 900)))")
    assert wide.cut == "size"
    assert 90 <= wide.table.num_rows <= 105
    assert wide.table.nbytes <= MIB
    one = sandbox.ask(f"SELECT repeat('x', {2 * MIB}) AS t")
    assert (one.table.num_rows, one.cut) == (0, "size")
    endless = "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT n FROM r"
    assert sandbox.ask(endless).cut == "rows"


def test_one_child_answers_one_after_the_other(sandbox: Sandbox) -> None:
    assert ok(sandbox)
    (child,) = sandbox._idle
    assert ok(sandbox)
    assert sandbox._idle == [child]


def test_new_searches_are_seen(sandbox: Sandbox, root: Path) -> None:
    Store(root).create("two-2", {"name": "two"})
    assert sandbox.ask("SELECT count(*) AS n FROM searches WHERE name = 'two'").table.to_pylist() == [{"n": 1}]
    (root / "searches" / "two-2").rename(root / "two-2")


def test_a_child_that_died_is_replaced(sandbox: Sandbox) -> None:
    assert ok(sandbox)
    (child,) = sandbox._idle
    os.kill(child._process.pid, signal.SIGKILL)
    child._process.wait()
    assert ok(sandbox)


def test_a_child_knows_none_of_our_secrets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTINUA_TOKEN", "hunter2")
    with Sandbox(root, SMALL) as sandbox:
        sandbox.warm()
        (child,) = sandbox._idle
        assert b"hunter2" not in Path(f"/proc/{child._process.pid}/environ").read_bytes()
        pid = child._process.pid
    assert not Path(f"/proc/{pid}").exists()


def test_no_more_are_asked_at_once_than_may_be(root: Path) -> None:
    with Sandbox(root, Limits(at_once=1, wall=0.2)) as sandbox:
        assert sandbox._free.acquire()  # as if another were being answered
        with pytest.raises(Busy, match="try again later"):
            sandbox.ask("SELECT 1")
