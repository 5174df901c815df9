"""A trial that takes too long ends, whatever its code does about it, and nothing of it is left; the others go on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.driver import run
from service.spec import check
from trials.query import query
from trials.records import Ending
from trials.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVE = """
import os
import signal
import subprocess
import sys
import time

def remember(pid):
    with open(os.environ["CONTINUA_TEST_PIDS"], "a") as file:
        file.write(f"{pid}\\n")

def objective(trial):
    remember(os.getpid())
    if trial.number == 1:
        print("about to sleep")
        time.sleep(600)
    if trial.number == 2:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf to SIGTERM")
        time.sleep(600)
    if trial.number == 4:
        if (child := os.fork()) == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        remember(child)
        child = subprocess.Popen(["sleep", "600"])
        remember(child.pid)
        child.wait()
    if trial.number == 6:
        child = subprocess.Popen(["sleep", "600"])
        remember(child.pid)  # left behind by a trial that is done
    return float(trial.number)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_trials_that_take_too_long_end_and_the_others_go_on(tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    monkeypatch.setenv("CONTINUA_TEST_PIDS", str(pids))
    (tmp_path / "stuck_objective.py").write_text(OBJECTIVE)
    spec: dict[str, Any] = {
        "task": "stuck_objective:objective",
        "space": {"x": {"type": "float", "low": 0, "high": 1}},
        "search": {"sampler": "random", "batch": 8},
        "budget": {"trials": 8},
        "resources": {"workers": 3, "lanes": 4, "trial_seconds": 4, "grace_seconds": 0.5},
    }
    parsed, task = check(spec, directory=tmp_path)
    store = Store(tmp_path / "store")
    result = run(parsed, task, store, directory=tmp_path)
    assert result.state == "complete"
    search = store.search(result.search_id)
    outcomes = {o.number: o for o in search.outcomes()}
    late = {1, 2, 4}
    assert {number: o.ending for number, o in outcomes.items()} == {
        number: Ending.TIMEOUT if number in late else Ending.COMPLETE for number in range(8)
    }
    assert [outcomes[n].value for n in (0, 3, 5, 6, 7)] == [0.0, 3.0, 5.0, 6.0, 7.0]
    assert "longer than resources.trial_seconds=4" in (outcomes[1].error or "")
    assert (outcomes[1].error or "").endswith("about to sleep")
    assert (outcomes[2].error or "").endswith("deaf to SIGTERM")
    assert all(outcomes[n].ended - outcomes[n].started > 3.9 for n in late)
    asked = [event.body for event in search.log() if event.kind == "failed"]
    assert {tuple(body["numbers"]) for body in asked} == {(n,) for n in late}, "a hang costs one trial"
    rows = query(store, "SELECT number FROM trials WHERE ending = 'timeout' ORDER BY number")["number"].to_pylist()
    assert rows == sorted(late)
    time.sleep(0.1)
    begun = {int(line) for line in pids.read_text().split()}
    assert len(begun) >= 7
    assert not {pid for pid in begun - {os.getpid()} if lives(pid)}


DRIVER = """
import sys
from pathlib import Path
from service.driver import run
from service.spec import check
from trials.store import Store

directory = Path(sys.argv[1])
spec = {
    "task": "stuck_objective:objective", "space": {"x": {"type": "float", "low": 0, "high": 1}},
    "budget": {"trials": 8}, "resources": {"workers": 1, "lanes": 1},
}
run(*check(spec, directory=directory), Store(directory / "store"), directory=directory)
"""


@pytest.mark.long
def test_what_a_trial_started_ends_with_a_killed_driver(tmp_path):
    pids = tmp_path / "pids"
    code = OBJECTIVE.replace("trial.number == 1:", "False:").replace("trial.number == 2:", "False:")
    (tmp_path / "stuck_objective.py").write_text(code)
    environment = {**os.environ, "CONTINUA_TEST_PIDS": str(pids)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=ROOT, env=environment)
    try:
        begun = until(lambda: pids.exists() and len(found := set(map(int, pids.read_text().split()))) == 3 and found)
        assert all(lives(pid) for pid in begun)  # the worker, its fork, and a program that it started
    finally:
        driver.kill()
        driver.wait()
    until(lambda: not any(lives(pid) for pid in begun))


def until(happened: Callable[[], Any], patience: float = 60.0) -> Any:
    deadline = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found
