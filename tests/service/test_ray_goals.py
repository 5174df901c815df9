"""Searches on a Ray cluster while what is wanted, the code, and the cluster itself change."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray_cases import created, driven, end_of, until

from service.executors import INSTALLERS
from service.executors.ray_cluster import Head
from service.goal import Edit, change
from trials.records import Ending
from trials.store import SearchStore

pytestmark = pytest.mark.slow

GATED = """
import os, time
from pathlib import Path

HERE = Path({here!r})

def objective(trial):
    (HERE / f"at-work-{{os.getpid()}}").touch()
    while not (HERE / "go").exists():
        time.sleep(0.05)
    time.sleep(0.1)
    return trial["x"]
"""
NEIGHBOUR = """
import os, time
from pathlib import Path
import neighbour

HERE = Path({here!r})

def objective(trial):
    (HERE / "{name}").touch()
    while not all((HERE / name).exists() for name in ("one", "two")):
        time.sleep(0.05)
    assert Path.cwd() == Path(neighbour.__file__).parent
    return neighbour.VALUE
"""
HANGING = """
import os, signal, time
from pathlib import Path

HERE = Path({here!r})
signal.signal(signal.SIGTERM, signal.SIG_IGN)

def objective(trial):
    if not (HERE / "hung").exists():
        (HERE / "hung").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
        time.sleep(1000)
    return trial["x"]
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Two CPUs, whatever the machine has, and a GPU that is there in name alone."""
    with Head(cpus=2, gpus=1) as head:
        yield head


def code(directory: Path, **files: str) -> Path:
    directory.mkdir()
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)
    return directory


def at_work(directory: Path) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in directory.glob("at-work-*")}


def lost_of(search: SearchStore) -> list[dict[str, object]]:
    return [event.body for event in search.log() if event.kind == "failed" and event.body.get("why") == "lost"]


def finished(search: SearchStore, trials: int) -> list[object]:
    """The values of all trials, each told once."""
    outcomes = sorted(search.outcomes(), key=lambda o: o.number)
    assert [o.number for o in outcomes] == list(range(trials))
    return [o.value for o in outcomes]


@pytest.mark.long
def test_slots_come_and_go_with_the_goal_and_with_nodes(head, store, tmp_path):
    """Every slot has a trial in hand while the numbers change; then all may go on."""
    directory = code(tmp_path / "code", objective=GATED.format(here=str(tmp_path)))
    search = created(store, "gated", directory, budget={"trials": 24})
    with driven(head, store, search, directory) as driver:
        until(lambda: len(at_work(tmp_path)) == 1)
        change(search, Edit(verb="scale", workers=3))
        until(lambda: len(at_work(tmp_path)) == 2)  # there is room for no more
        node = head.join(cpus=1, gpus=0)
        until(lambda: len(at_work(tmp_path)) == 3)
        node.kill()
        until(lambda: lost_of(search))
        another = head.join(cpus=1, gpus=0)
        until(lambda: len(at_work(tmp_path)) == 4)  # in place of the one that was lost
        change(search, Edit(verb="scale", workers=1))
        until(lambda: [e for e in search.log() if e.kind == "goal" and e.body["workers"] == 1])
        (tmp_path / "go").touch()
        assert end_of(driver) == "complete"
    another.kill()
    finished(search, 24)
    outcomes = sorted(search.outcomes(), key=lambda o: o.ended)
    assert all(o.ending is Ending.COMPLETE and o.value == o.point["x"] for o in outcomes)
    assert len(lost_of(search)) == 1
    assert len({o.worker for o in outcomes}) == 3  # the one that was lost finished nothing
    (last,) = {o.worker for o in outcomes[-10:]}
    assert last.startswith("ray-0-"), "not the newest left"


def test_searches_at_once_see_each_their_own_code_alone(head, store, tmp_path):
    """The modules have the same names; each waits for the other, so they do run at once."""
    ends = {}

    def drive(name: str, value: float) -> None:
        text = NEIGHBOUR.format(here=str(tmp_path), name=name)
        directory = code(tmp_path / f"code-{name}", objective=text, neighbour=f"VALUE = {value}\n")
        search = created(store, name, directory, budget={"trials": 4})
        with driven(head, store, search, directory, {"working_dir": str(directory)}) as driver:
            ends[name] = end_of(driver)

    threads = [threading.Thread(target=drive, args=each) for each in (("one", 1.0), ("two", 2.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == {"one": "complete", "two": "complete"}
    assert finished(store.search("one"), 4) == [1.0] * 4
    assert finished(store.search("two"), 4) == [2.0] * 4


@pytest.mark.long
def test_a_trial_that_hangs_ends_and_its_slot_lives_on(head, store, tmp_path):
    """It ignores a SIGTERM; and a slot with a fraction of a GPU sees the one that Ray gave it, its child too."""
    directory = code(tmp_path / "code", objective=HANGING.format(here=str(tmp_path)))
    resources = {"workers": 1, "lanes": 1, "trial_seconds": 10, "grace_seconds": 0.1, "gpus_per_worker": 0.25}
    search = created(store, "hanging", directory, budget={"trials": 4}, resources=resources)
    with driven(head, store, search, directory, {"working_dir": str(directory)}) as driver:
        assert end_of(driver) == "complete", [event.body for event in search.log()]
    finished(search, 4)
    endings = sorted((o.ending for o in search.outcomes()), key=str)
    assert endings == [Ending.COMPLETE] * 3 + [Ending.TIMEOUT]
    assert {o.worker.rpartition("-")[0] for o in search.outcomes()} <= {"ray-0", ""}
    assert (tmp_path / "hung").read_text() == "0"


@pytest.mark.long
def test_code_that_cannot_be_imported_ends_the_search_in_its_own_words(head, store, tmp_path):
    text = (
        "import os\nif 'RAY_JOB_ID' in os.environ: raise ImportError('no engine here')\ndef objective(t): return 0.0\n"
    )
    directory = code(tmp_path / "code", objective=text)
    search = created(store, "broken", directory, budget={"trials": 4})
    with driven(head, store, search, directory) as driver:
        driver.communicate(timeout=240)
    (why,) = [event.body["why"] for event in search.log() if event.body.get("state") == "failed"]
    assert "no worker slot could start; the last one said:" in why
    assert "no engine here" in why


OBJECTIVE = """
import blueberry

def objective(trial):
    return blueberry.VALUE
"""
NETWORK = """
import blueberry
from torch import nn
from search_spaces.width import WidthGate

class Mine(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        units = blueberry.UNITS
        self.a, self.gate, self.b = nn.Linear(64, units), WidthGate("mine", units), nn.Linear(units, outputs)

    def forward(self, x):
        return self.b(self.gate(self.a(x).relu()))
"""
TRAINED = {
    "task": "uci/digits",
    "network": {"kind": "objective:Mine"},
    "space": {"mine": {"type": "width", "low": 2, "high": 12}},
    "training": {"epochs": 1, "lr": 0.1},
}


@pytest.mark.long
@pytest.mark.parametrize("installer", INSTALLERS)
@pytest.mark.parametrize("trained", [False, True], ids=["objective", "network"])
def test_a_requirement_is_installed_for_that_search_alone(head, store, tmp_path, installer, trained):
    """From a wheel that lies here; Ray sets up an environment of the search's own, and only there the code is run."""
    wheel = wheel_of(tmp_path, "blueberry", "VALUE, UNITS = 7.0, 12\n")
    directory = code(tmp_path / "code", objective=NETWORK if trained else OBJECTIVE)
    search = created(store, "berries", directory, budget={"trials": 4}, **(TRAINED if trained else {}))
    environment = {"working_dir": str(directory), installer: [str(wheel)]}
    with driven(head, store, search, directory, environment) as driver:
        assert end_of(driver) == "complete"
    values = finished(search, 4)
    assert values == [7.0] * 4 or (trained and all(0 < value < 1 for value in values))
    assert "blueberry" not in os.listdir(Path(os.__file__).parent / "site-packages")


@pytest.mark.long
def test_what_cannot_be_prepared_there_fails_in_its_own_words(head, store, tmp_path):
    wheel = wheel_of(tmp_path, "blueberry", "VALUE = 7.0\n")
    directory = code(tmp_path / "code", objective="import blueberry, gooseberry\n")
    search = created(store, "berries", directory, budget={"trials": 4})
    environment = {"working_dir": str(directory), "pip": [str(wheel)]}
    with driven(head, store, search, directory, environment, stderr=subprocess.PIPE) as driver:
        _, said = driver.communicate(timeout=240)
    assert "gooseberry" in said.splitlines()[-1], said


@pytest.mark.long
def test_what_waits_to_be_prepared_can_be_cancelled(head, store, tmp_path):
    """No node has a GPU to prepare on."""
    wheel = wheel_of(tmp_path, "blueberry", "VALUE = 7.0\n")
    directory = code(tmp_path / "code", objective=OBJECTIVE)
    search = created(store, "berries", directory, budget={"trials": 4}, resources={"gpus_per_worker": 1})
    with driven(head, store, search, directory, {"working_dir": str(directory), "pip": [str(wheel)]}) as driver:
        until(lambda: search.state() == "running")
        time.sleep(2.0)
        change(search, Edit(verb="cancel"))
        assert end_of(driver) == "cancelled"


def wheel_of(directory: Path, name: str, text: str) -> Path:
    """A wheel of one module."""
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", text)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return wheel
