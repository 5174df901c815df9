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
from cli_cases import IRIS, PROGRAM, QUIET, SLOWER, failing, python, rows, strict

from service.cli import main
from service.summary import WitnessStore, summary
from trials.store import Store

# -- what is printed ---------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("alone")


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
    assert f"width.0 2; {5 * 2 + 3 * 3} parameters" in text  # widths 2 and 16, worked out by hand
    assert f"width.0 16; {5 * 16 + 17 * 3} parameters" in text
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


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered: str, done: tuple[Path, str]) -> None:
    sql = "SELECT a.number FROM trials a, trials b, trials c, trials d, trials e, trials f"
    command = [*PROGRAM, "query", sql, "--store", str(done[0])]
    settings = {**QUIET, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip() == b"number"
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
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


@pytest.mark.slow
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


def test_lanes_are_told_as_allowed_and_as_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "iris.yaml").write_text(IRIS)
    for lanes, words in ((64, "64 at most, 4 in the largest bundle"), (4, "4")):
        more = ["--set", f"resources.lanes={lanes}", "--executor", "here", "--store", f"st{lanes}", "-q"]
        assert main(["run", "iris.yaml", *more]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lanes")]
        assert line.split(maxsplit=1)[1] == words
    found = WitnessStore(tmp_path / "st64")
    assert {n: summary(found.search(found.searches()[0]))[n] for n in ("lanes", "packed")} == {"lanes": 64, "packed": 4}
