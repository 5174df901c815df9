"""Searches that fail and what a user may get wrong: one sentence a fault, the right exit code, never a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_cases import IRIS, failing, python, rows, strict

from service.cli import main
from trials.store import Store

# -- a search that fails ----------------------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("alone")


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
    assert strict(out)["state"] == "failed"
    assert "error: the search failed: of its 6 trials none is complete (6 error); trial 5: RuntimeError: no luck" in err
    assert "--resume" not in err  # nothing is left to do
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


@pytest.mark.slow
def test_a_search_whose_workers_are_killed_says_why_and_goes_on_when_that_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.controller.MAX_RETRIES", 0)
    body = """
    if not __import__('pathlib').Path('mended').exists():
        __import__('os').kill(__import__('os').getpid(), 9)
    return trial.number"""
    spec = python(tmp_path, body, "killed")
    more = ["--set", "budget.trials=2", "--set", "resources={workers: 1, lanes: 1}", "--store", "st", "-o", "json"]
    assert main(["run", str(spec), *more]) == 6
    out, err = capsys.readouterr()
    found = strict(out)
    assert (found["state"], found["trials"]) == ("failed", {"preempted": 2})
    told = f"error: the search failed: {found['why']}"
    assert "its worker died 1 times while training it; the last one said: loaded (killed by SIGKILL" in told
    resuming = f"continua run --resume {found['search_id']} --store {tmp_path / 'st'}"
    assert f"{told}\n2 lost trials will be trained again; mend the cause, then go on with: {resuming}\n" in err
    assert main(["show", "killed", "--store", "st"]) == 0
    assert f"failed: {found['why']}\n" in capsys.readouterr().out
    rows_told = rows(tmp_path / "st", "SELECT ending, error FROM trials ORDER BY number", capsys)
    assert [row["ending"] for row in rows_told] == ["preempted"] * 2
    assert all("killed by SIGKILL" in row["error"] for row in rows_told)
    (tmp_path / "mended").touch()
    assert main(["run", "--resume", found["search_id"], "--store", "st", "--executor", "here", "-o", "json"]) == 0
    found = strict(capsys.readouterr().out)
    assert (found["state"], found["why"], found["trials"]) == ("complete", None, {"complete": 2})


@pytest.mark.parametrize("budget", ["wall_seconds", "device_seconds"])
def test_a_failed_search_whose_time_is_up_is_not_sent_to_resume(
    budget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.controller.MAX_RETRIES", 0)
    body = """
    __import__('time').sleep(0.6)
    raise RuntimeError('no luck') if trial.number else MemoryError"""
    spec = python(tmp_path, body, "late")
    more = ["--set", f"budget={{trials: 2, {budget}: 0.5}}", "--set", "resources={workers: 1, lanes: 1}"]
    assert main(["run", str(spec), *more, "--executor", "here", "--store", "st", "-q", "-o", "json"]) == 6
    out, err = capsys.readouterr()
    assert strict(out)["trials"]["oom"] == 1
    assert (
        "its time is up, so it cannot go on (1 lost trial will not be trained again): mend the cause, "
        f"raise budget.{budget}, then run its spec again.\n"
    ) in err
    assert "--resume" not in err


def test_a_budget_too_small_for_a_trial_is_told_with_what_one_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "iris.yaml").write_text(IRIS)
    more = ["--set", "budget={flops: 1000}", "--executor", "here", "--store", "st", "-o", "json"]
    assert main(["run", "iris.yaml", *more]) == 6
    out, err = capsys.readouterr()
    assert strict(out)["state"] == "failed"
    assert "no trial was asked, the budget is too small for one; the first of 4 points needs budget.flops of" in err
    assert "raise the budget" in err


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
