"""The command line as a user meets it: exit codes, what stands on which stream, searches cut off and gone on with."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from service.cli import main
from trials.store import Store

IRIS = """
task: uci/iris
network: {kind: mlp, layers: 1}
space:
  width.0: {type: width, low: 2, high: 16}
  lr: {type: float, low: 1.0e-3, high: 1.0, log: true}
training: {batch_size: 32, epochs: 1}
search: {sampler: random, batch: 4}
budget: {trials: 8}
resources: {workers: 1, lanes: 4}
"""
SLOWER = ("training.epochs=300", "search.sampler={kind: tpe, startup: 4}", "budget.trials=40")
PROGRAM = [sys.executable, "-m", "service.cli"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}


def strict(text: str) -> Any:
    """JSON as the standard has it: no NaN."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own settings, and a working directory to spare."""
    for name in ("CONTINUA_STORE", "CONTINUA_DATA", "CONTINUA_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with one complete search, and the search's id; not to be written to."""
    path = tmp_path_factory.mktemp("done")
    (path / "iris.yaml").write_text(IRIS)
    store = path / "store"
    assert main(["run", str(path / "iris.yaml"), "--store", str(store), "--executor", "here", "-q"]) == 0
    (search_id,) = Store.open_for_reading(store).searches()
    return store, search_id


def rows(store: Path, sql: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The answer to a query, through the program."""
    capsys.readouterr()
    assert main(["query", sql, "--store", str(store), "-o", "json"]) == 0
    found: list[dict[str, Any]] = strict(capsys.readouterr().out)
    return found


def failing(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The errors that a command says: nothing on stdout, each on a line of its own, no traceback."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors
    return errors


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_run_ends_with_one_json_object_that_show_and_sql_agree_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "iris.yaml").write_text(IRIS)
    assert main(["run", "iris.yaml", "--store", "st", "--executor", "here", "-o", "json", "--set", "seed=3"]) == 0
    out, err = capsys.readouterr()
    found = strict(out)
    assert out.count("\n") == 1
    assert "continua show" in err
    assert "continua query" in err
    assert found["state"] == "complete"
    assert found["name"] == "iris"
    assert found["trials"] == {"complete": 8}
    assert found["lanes"] == 4

    trials = rows(tmp_path / "st", "SELECT * FROM trials", capsys)
    best = min(trials, key=lambda row: (row["value"], row["number"]))
    assert found["best"]["trial"] == best["number"]
    assert found["best"]["value"] == best["value"]
    assert found["best"]["point"] == json.loads(best["point"])
    assert found["best"]["rounded"] == json.loads(best["rounded"])
    for key in ("flops", "executed_flops", "device_seconds"):
        assert found["spent"][key] == pytest.approx(sum(row[key] for row in trials), rel=1e-12)
    assert found["spent"]["wall_seconds"] > 0

    assert main(["show", found["search_id"], "--store", "st", "-o", "json"]) == 0
    shown = strict(capsys.readouterr().out)
    assert {key: shown[key] for key in found} == found
    assert shown["spec"]["seed"] == 3
    assert shown["damaged"] == []

    assert main(["best", "iris", "--store", "st", "-o", "json"]) == 0
    alone = strict(capsys.readouterr().out)
    assert alone["metrics"]["val_error"] == alone["value"] == best["value"]
    width = alone["rounded"]["width.0"]
    assert alone["parameters"] == (4 + 1) * width + (width + 1) * 3


def test_every_form_of_rows_says_the_same(done: tuple[Path, str], capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    store, _ = done
    sql = "SELECT number, value, ending, 'nan'::DOUBLE AS broken, NULL AS none FROM trials ORDER BY number"
    said = {}
    for output in ("json", "jsonl", "csv", "arrow", "table"):
        assert main(["query", sql, "--store", str(store), "-o", output]) == 0
        said[output] = capsysbinary.readouterr().out
    found = strict(said["json"].decode())
    assert [row["number"] for row in found] == list(range(8))
    assert {row["broken"] for row in found} == {"NaN"}
    assert {row["none"] for row in found} == {None}
    assert [strict(line) for line in said["jsonl"].decode().splitlines()] == found
    assert [float(row["value"]) for row in csv.DictReader(io.StringIO(said["csv"].decode()))] == [
        row["value"] for row in found
    ]
    arrow = pa.ipc.open_stream(said["arrow"]).read_all()
    assert arrow["value"].to_pylist() == [row["value"] for row in found]
    assert said["table"].decode().splitlines()[0].split() == ["number", "value", "ending", "broken", "none"]
    assert len(said["table"].splitlines()) == 9


def test_list_has_a_row_a_search_and_an_empty_store_has_none(
    done: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    store, search_id = done
    assert main(["list", "--store", str(store), "-o", "json"]) == 0
    (row,) = strict(capsys.readouterr().out)
    assert (row["search_id"], row["state"], row["trials"], row["complete"]) == (search_id, "complete", 8, 8)
    assert main(["list", "--store", "nowhere", "-o", "json"]) == 0
    assert strict(capsys.readouterr().out) == []
    assert not Path("nowhere").exists()


def test_settings_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CONTINUA_STORE", "/from/environment")
    assert main(["config", "show", "--origin", "-o", "json"]) == 0
    assert {"name": "store", "value": "/from/environment", "origin": "CONTINUA_STORE"} in strict(
        capsys.readouterr().out
    )
    assert main(["config", "show", "--origin", "--store", "/flag", "-o", "json"]) == 0
    assert strict(capsys.readouterr().out)[0] == {"name": "store", "value": "/flag", "origin": "--store"}


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("continua ")
    assert main(["run", "--help"]) == 0
    assert "--resume" in capsys.readouterr().out
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage" in err


def test_looking_loads_nothing_heavy(done: tuple[Path, str]) -> None:
    store, search_id = done
    script = f"""
import sys
from service.cli import main
assert main(["list", "--store", {str(store)!r}]) == 0
assert main(["show", {search_id!r}, "--store", {str(store)!r}]) == 0
assert not {{"torch", "ray", "optuna", "duckdb", "sklearn", "rich"}} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, env=QUIET)


def test_a_dry_run_shows_a_spec_that_runs_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "iris.yaml").write_text(IRIS)
    assert main(["run", "iris.yaml", "--dry-run", "--store", "st", "--set", "budget.trials=12"]) == 0
    text = capsys.readouterr().out
    assert "# a generation: 4 points" in text
    assert f"4-2-3, {5 * 2 + 3 * 3} parameters" in text  # widths 2 and 16, worked out by hand
    assert f"4-16-3, {5 * 16 + 17 * 3} parameters" in text
    assert not (tmp_path / "st").exists()
    (tmp_path / "again.yaml").write_text(text)
    assert main(["run", "again.yaml", "--dry-run", "-o", "json"]) == 0
    again = strict(capsys.readouterr().out)
    assert again["spec"]["budget"] == {"trials": 12}
    assert again["spec"]["name"] == "iris"
    assert again["batch"] == 4
    assert (again["smallest"]["parameters"], again["largest"]["parameters"]) == (19, 131)


def test_notes_of_the_task_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{i % 7},{i % 3},same,{'yes' if i % 3 else 'no'}" for i in range(60)]
    (tmp_path / "data.csv").write_text("a,b,constant,target\n" + "\n".join(lines) + "\n")
    (tmp_path / "spec.yaml").write_text(IRIS.replace("uci/iris", "{kind: table, path: data.csv, target: target}"))
    assert main(["run", "spec.yaml", "--dry-run"]) == 0
    assert "constant" in capsys.readouterr().out
    assert main(["run", "spec.yaml", "--executor", "here", "--store", "st", "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert any(line.startswith("note: ") and "constant" in line for line in err.splitlines())
    strict(out)


# -- a search that fails ----------------------------------------------------------------------------------------------

OBJECTIVE = """
task: mine:objective
space: {x: {type: float, low: -1.0, high: 1.0}}
budget: {trials: 6}
search: {sampler: random}
"""


def python(tmp_path: Path, body: str, module: str) -> Path:
    """A spec of a plain objective with that body; each test's module has a name of its own, for Python keeps them."""
    (tmp_path / f"{module}.py").write_text(f"import math, time\nprint('loaded')\ndef objective(trial):\n    {body}\n")
    spec = tmp_path / f"{module}.yaml"
    spec.write_text(OBJECTIVE.replace("mine", module))
    return spec


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = "print('hello'); n = trial.number; return {'value': math.nan if n == 0 else n, 'aux': (-1) ** n * math.inf}"
    spec = python(tmp_path, body, "not_finite")
    assert main(["run", str(spec), "--executor", "here", "--store", "st", "-o", "json", "-q"]) == 0
    out, err = capsys.readouterr()
    found = strict(out)
    assert err.count("hello") == 6  # what the user's code prints is no data
    assert found["trials"] == {"complete": 5, "nan": 1}
    assert found["best"]["trial"] == 1
    assert found["best"]["metrics"]["aux"] == "-Infinity"
    told = rows(tmp_path / "st", "SELECT number, value, aux FROM trials ORDER BY number", capsys)
    assert [row["aux"] for row in told] == ["Infinity", "-Infinity"] * 3
    assert [row["value"] for row in told] == [None, 1, 2, 3, 4, 5]


def test_a_search_without_a_complete_trial_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = python(tmp_path, "raise RuntimeError('no luck')", "all_raise")
    assert main(["run", str(spec), "--executor", "here", "--store", "st", "-o", "json"]) == 6
    out, err = capsys.readouterr()
    assert strict(out)["trials"] == {"error": 6}
    assert strict(out)["best"] is None
    assert "error: the search failed" in err
    assert "no trial is complete" in failing(["best", "all-raise", "--store", "st"], 3, capsys)[0]


def test_a_search_that_meets_one_error_again_and_again_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = python(tmp_path, "raise RuntimeError('no luck')", "same_error")
    more = ["--set", "budget.trials=64", "--executor", "here", "--store", "st", "-o", "json"]
    assert main(["run", str(spec), *more]) == 6
    out, err = capsys.readouterr()
    assert strict(out)["state"] == "failed"
    assert "no luck" in err
    assert "--resume" in err


def test_a_trial_that_was_tried_again_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = """
    if trial.number % 2 and not (here := __import__('pathlib').Path(f'tried-{trial.number}')).exists():
        here.touch()
        raise MemoryError
    return trial.number"""
    spec = python(tmp_path, body, "tries_again")
    more = ["--executor", "here", "--store", "st", "-o", "json", "-q", "--set", "resources.lanes=3"]
    assert main(["run", str(spec), *more]) == 0
    found = strict(capsys.readouterr().out)
    assert found["trials"] == {"complete": 6}
    assert found["best"]["trial"] == 0
    told = rows(tmp_path / "st", "SELECT number, value FROM trials ORDER BY number", capsys)
    assert [row["value"] for row in told] == [0, 1, 2, 3, 4, 5]


def test_an_unexpected_error_is_one_line_and_its_traceback_is_to_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: tuple[Path, str]
) -> None:
    def broken(self: Store) -> list[str]:
        raise KeyError("a bug")

    monkeypatch.setattr(Store, "searches", broken)
    (error,) = failing(["list", "--store", str(done[0])], 1, capsys)
    assert "CONTINUA_DEBUG=1" in error
    monkeypatch.setenv("CONTINUA_DEBUG", "1")
    assert main(["list", "--store", str(done[0])]) == 1
    assert "Traceback" in capsys.readouterr().err


# -- what a user may get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task=uci/irs", "uci/iris"),
        ("task=uci", "unknown task"),
        ("network.kind=mpl", "Did you mean 'mlp'"),
        ("search.sampler=tpee", "Did you mean 'tpe'"),
        ("space.lr.low=2", "low"),
        ("space.lr.low=0", "log"),
        ("space.width.0.low=32", "low"),
        ("budget.trials=0", "budget.trials"),
        ("budget.trials=-3", "budget.trials"),
        ("constraints={parameters: {max: 10}}", "constraints.parameters.max"),
        ("budgets.trials=1", "Did you mean 'budget'"),
        ("nonsense", "KEY=VALUE"),
    ],
)
def test_a_faulty_spec_is_a_usage_error(
    override: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "iris.yaml").write_text(IRIS)
    errors = failing(["run", "iris.yaml", "--set", override, "--store", "st"], 2, capsys)
    assert any(words in line for line in errors), errors
    assert not (tmp_path / "st").exists()


def test_all_faults_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "iris.yaml").write_text(IRIS)
    faults = ["--set", "task=uci/irs", "--set", "budget.trials=0", "--set", "space.lr.low=2"]
    assert len(failing(["run", "iris.yaml", *faults], 2, capsys)) == 3


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a,b,label", *("1,2,yes" for _ in range(40)), *("2,1,no" for _ in range(40))], "target"),
        (["a,b,target", *(f"{i},2,yes" for i in range(40))], "every row"),
        (["a,b,target", *(f"{i},2," for i in range(40))], "target"),
        (["a,target", *(f"1,{'yes' if i % 2 else 'no'}" for i in range(40))], "column"),
        (["a,target"], "row"),
    ],
    ids=["no target column", "one class", "only missing targets", "no usable column", "no rows"],
)
def test_a_faulty_table_is_a_usage_error(
    lines: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "spec.yaml").write_text(IRIS.replace("uci/iris", "{kind: table, path: data.csv, target: target}"))
    errors = failing(["run", "spec.yaml", "--store", "st"], 2, capsys)
    assert any(words in line for line in errors), errors


@pytest.mark.parametrize(
    "text", ["a: [1", "- 1\n- 2\n", "", "a: 1\na: 2\n", "\x00\x01", "!!python/object:os.system {}"]
)
def test_a_file_that_is_no_spec_is_a_usage_error(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    failing(["run", "bad.yaml", "--store", "st"], 2, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "iris.yaml", "--resume", "x"],
        ["run", "--resume", "x", "--set", "seed=1"],
        ["run", "missing.yaml"],
        ["run", "iris.yaml", "--executor", "cloud"],
        ["run", "iris.yaml", "--store", "iris.yaml"],
        ["run", "iris.yaml", "--store", "iris.yaml/below"],
        ["list", "-o", "xml"],
        ["list", "--store", "s3://bucket"],
        ["query", "SELEC 1"],
        ["query", "SELECT numbr FROM trials"],
        ["query", "DROP TABLE trials"],
        ["query", "SELECT 1; SELECT 2"],
        ["query", "SELECT * FROM read_csv('/etc/passwd')"],
        ["query"],
        ["nonsense"],
        ["show", "x", "--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "iris.yaml").write_text(IRIS)
    failing(arguments, 2, capsys)


def test_an_id_may_be_its_beginning_but_not_any_more_than_one(
    done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, search_id = done
    shutil.copytree(store, tmp_path / "st")
    shutil.copytree(store / "searches" / search_id, tmp_path / "st" / "searches" / f"{search_id}-2")
    assert main(["show", search_id, "--store", "st", "-o", "json"]) == 0  # a whole id, though another goes on from it
    assert strict(capsys.readouterr().out)["search_id"] == search_id
    assert "begins 2" in failing(["show", search_id[:4], "--store", "st"], 2, capsys)[0]
    assert search_id in failing(["show", search_id + "x", "--store", "st"], 3, capsys)[0]
    for command in (["show", "zzz"], ["best", "zzz"], ["run", "--resume", "zzz"], ["show", ""]):
        failing([*command, "--store", "st"], 3, capsys)


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_damage_is_told_kept_apart_and_mended(
    harm: str, done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, search_id = done
    before = rows(store, "SELECT number, point, value, val_loss FROM trials ORDER BY number", capsys)
    shutil.copytree(store, tmp_path / "st")
    segment = sorted((tmp_path / "st" / "searches" / search_id / "metrics").glob("*/final-*.arrow"))[0]
    content = bytearray(segment.read_bytes())
    if harm == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    segment.write_bytes(content)

    for command in (["query", "SELECT * FROM trials"], ["show", search_id], ["list"]):
        assert main([*command, "--store", "st", "-o", "json"]) == 0
        out, err = capsys.readouterr()
        strict(out)
        assert segment.name in err
        assert "continua doctor" in err
    assert main(["doctor", "--store", "st", "-o", "json"]) == 1
    (row,) = strict(capsys.readouterr().out)
    assert row["path"].endswith(segment.name)
    assert row["moved_to"] is None
    assert segment.exists()

    with Store("st").search(search_id).lease():  # a live process has it: hands off
        assert main(["doctor", "--store", "st", "--quarantine", "-o", "json"]) == 1
        assert strict(capsys.readouterr().out)[0]["moved_to"] is None
    assert main(["doctor", "--store", "st", "--quarantine", "-o", "json"]) == 1
    (row,) = strict(capsys.readouterr().out)
    assert Path(row["moved_to"]).read_bytes() == content
    assert not segment.exists()
    assert main(["doctor", "--store", "st"]) == 0

    assert main(["run", "--resume", search_id, "--store", "st", "--executor", "here", "-q"]) == 0
    assert rows(tmp_path / "st", "SELECT number, point, value, val_loss FROM trials ORDER BY number", capsys) == before


def test_a_damaged_spec_is_told(done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, search_id = done
    shutil.copytree(store, tmp_path / "st")
    (tmp_path / "st" / "searches" / search_id / "spec.json").write_text("{")
    assert main(["doctor", "--store", "st", "-o", "json"]) == 1
    assert strict(capsys.readouterr().out)[0]["path"].endswith("spec.json")
    assert main(["list", "--store", "st", "-o", "json"]) == 0
    assert strict(capsys.readouterr().out)[0]["complete"] == 8
    for command in (["best", search_id], ["run", "--resume", search_id]):
        assert "spec.json" in failing([*command, "--store", "st"], 1, capsys)[0]


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered: str, done: tuple[Path, str]) -> None:
    command = [*PROGRAM, "query", "SELECT * FROM range(100000)", "--store", str(done[0])]
    settings = {**QUIET, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip() == b"range"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_full_disk_is_an_error_in_one_line(done: tuple[Path, str]) -> None:
    with open("/dev/full", "w") as full:
        command = [*PROGRAM, "list", "--store", str(done[0])]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=QUIET, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "error: stdout: No space left on device\n"


def on_a_terminal(arguments: list[str], **environment: str) -> tuple[int, str]:
    """Exit code and output of the program with a terminal for stdout and stderr."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdout=theirs, stderr=theirs, env={**QUIET, **environment}
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not piece:
                break
            said += piece
    os.close(ours)
    return process.returncode, said.decode()


def test_a_terminal_gets_styles_unless_it_is_dumb_and_no_binary(done: tuple[Path, str]) -> None:
    arguments = ["list", "--store", str(done[0])]
    assert "\x1b[" in on_a_terminal(arguments, TERM="xterm", COLUMNS="200")[1]
    assert "\x1b[" not in on_a_terminal(arguments, TERM="dumb")[1]
    code, said = on_a_terminal([*arguments, "-o", "arrow"], TERM="xterm")
    assert code == 2
    assert "redirect" in said


# -- cut off and gone on with ------------------------------------------------------------------------------------------


def ended(store: Path) -> int:
    """How many trials of the store's one search have been told of."""
    reading = Store.open_for_reading(store)
    return sum(len(e.body["numbers"]) for s in reading.searches() for e in reading.search(s).log() if e.kind == "told")


def wait_until(store: Path, count: int, process: subprocess.Popen[str]) -> str:
    """Wait for `count` trials; returns the search's id."""
    deadline = time.monotonic() + 60
    while ended(store) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (search_id,) = Store.open_for_reading(store).searches()
    return search_id


def slower(tmp_path: Path, store: str) -> list[str]:
    """A search of real trainings that takes a few seconds."""
    (tmp_path / "iris.yaml").write_text(IRIS)
    return ["run", "iris.yaml", "--store", store, *(word for text in SLOWER for word in ("--set", text))]


FACTS = "SELECT number, asked, point, rounded, ending, value, val_loss FROM trials ORDER BY number"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_search_cut_off_goes_on_as_if_nothing_had_happened(
    how: signal.Signals, uninterrupted: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*PROGRAM, *slower(tmp_path, "st"), "-o", "json"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=QUIET, **streams) as process:  # type: ignore[call-overload]
        search_id = wait_until(tmp_path / "st", 8, process)
        process.send_signal(signal.SIGSTOP)  # so that it does not end while it is looked at
        if how is signal.SIGINT:
            assert main(["list", "--store", "st", "-o", "json"]) == 0
            assert strict(capsys.readouterr().out)[0]["state"] == "running"
            error = failing(["run", "--resume", search_id, "--store", "st"], 5, capsys)[0]
            assert str(process.pid) in error
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=30)
    cut = ended(tmp_path / "st")
    assert 8 <= cut < 40
    arguments = ["run", "--resume", search_id, "--store", str((tmp_path / "st").absolute())]
    if how is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert strict(out)["state"] == "interrupted"
        assert strict(out)["trials"] == {"complete": cut}
        assert f"go on with: {shlex.join(['continua', *arguments])}" in err.splitlines()
        assert "Traceback" not in err
    assert main(["show", search_id, "--store", "st", "-o", "json"]) == 0
    assert strict(capsys.readouterr().out)["state"] == "interrupted"

    assert main([*arguments, "--executor", "here", "-o", "json"]) == 0
    found = strict(capsys.readouterr().out)
    assert found["state"] == "complete"
    assert found["trials"] == {"complete": 40}
    assert rows(tmp_path / "st", FACTS, capsys) == uninterrupted


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the trials of `slower` are when nothing happens to them."""
    from trials.query import query

    path = tmp_path_factory.mktemp("whole")
    arguments = slower(path, str(path / "st"))
    arguments[1] = str(path / "iris.yaml")
    assert main([*arguments, "--executor", "here", "-q"]) == 0
    found: list[dict[str, Any]] = query(Store.open_for_reading(path / "st"), FACTS).to_pylist()
    assert Counter(row["ending"] for row in found) == {"complete": 40}
    return found


def test_a_second_interruption_ends_it_at_once(tmp_path: Path) -> None:
    spec = python(tmp_path, "time.sleep(0.01 if trial.number < 2 else 60); return 1.0", "sleeper")
    command = [*PROGRAM, "run", str(spec), "--store", "st", "--executor", "here", "--set", "resources.lanes=1"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=QUIET) as process:
        wait_until(tmp_path / "st", 2, process)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "once more" not in process.stderr.readline():
            assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 2
    assert process.returncode == 130
    assert "continua run --resume" in err
    assert "--executor here" in err
