"""One owner at a time, and it dies with its process: no clock, no file that somebody must remember to remove."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from search_spaces.faults import Invalid
from trials.lease import Held, Lease, holder
from trials.store import Store

OWNER = """
import sys
from trials.lease import Held, Lease
try:
    lease = Lease(sys.argv[1])
except Held as held:
    print("held", held.owner.get("pid"), flush=True)
else:
    print(lease.epoch, flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lease at `path`, and its epoch."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", OWNER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_epochs_rise_and_release_frees(tmp_path: Path) -> None:
    path = tmp_path / "lease.sqlite"
    epochs = []
    for _ in range(3):
        with Lease(path) as lease:
            epochs.append(lease.epoch)
    assert epochs == [1, 2, 3]
    lease.release()  # once more does nothing
    assert not (tmp_path / "lease.json").exists()


def test_the_epoch_lies_above_one_known_from_elsewhere(tmp_path: Path) -> None:
    with Lease(tmp_path / "lease.sqlite", above=7) as lease:
        assert lease.epoch == 8
    with Lease(tmp_path / "lease.sqlite", above=3) as lease:
        assert lease.epoch == 9


def test_a_second_taker_in_one_process_is_told_who_holds(tmp_path: Path) -> None:
    with Lease(tmp_path / "lease.sqlite") as lease:
        for _ in range(2):
            with pytest.raises(Held, match=f"process {os.getpid()} on ") as caught:
                Lease(tmp_path / "lease.sqlite")
            assert caught.value.owner["epoch"] == lease.epoch
    with Lease(tmp_path / "lease.sqlite") as lease:
        assert lease.epoch == 2  # who was refused used no epoch


def test_held_without_a_readable_owner_file_still_says_so(tmp_path: Path) -> None:
    with Lease(tmp_path / "lease.sqlite"):
        for text in (None, "{", ""):
            (tmp_path / "lease.json").unlink(missing_ok=True)
            if text is not None:
                (tmp_path / "lease.json").write_text(text)
            with pytest.raises(Held, match="another process"):
                Lease(tmp_path / "lease.sqlite")


def test_a_killed_owner_frees_it_at_once_and_a_stopped_one_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lease.sqlite"
    with owner(path) as (process, epoch):
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == process.pid
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        with pytest.raises(Held) as caught:
            Lease(path)
        assert caught.value.owner["pid"] == process.pid
        process.kill()
        process.wait()
        with Lease(path) as lease:
            assert lease.epoch == epoch + 1


def test_of_many_takers_at_once_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "lease.sqlite"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", OWNER, str(path)]
    takers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(6)
    ]
    try:
        said = [process.stdout.readline().split() for process in takers if process.stdout]
        assert sum(words[0] != "held" for words in said) == 1
    finally:
        for process in takers:
            process.kill()
            process.communicate()
    with Lease(path) as lease:
        assert lease.epoch > max(int(words[0]) for words in said if words[0] != "held")


def test_a_file_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "lease.sqlite").write_bytes(b"not a database, but long enough to be taken for one" * 10)
    with pytest.raises(Invalid, match="must be an SQLite file"):
        Lease(tmp_path / "lease.sqlite")
    with pytest.raises(Invalid, match="must be an SQLite file"):
        Lease(tmp_path / "nowhere" / "lease.sqlite")


def test_a_search_leases_epochs_above_its_log(tmp_path: Path) -> None:
    search = Store(tmp_path).create("s", {})
    with search.lease() as lease:
        search.log_writer(lease.epoch).append("state", {"state": "running"})
    (tmp_path / "searches/s/lease.sqlite").unlink()  # lost with the disk it was on
    with search.lease() as lease:
        search.log_writer(lease.epoch).append("state", {"state": "done"})
    assert [event.epoch for event in search.log()] == [1, 2]


def test_asking_who_has_it_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lease.sqlite"
    assert holder(path) is None
    assert not path.exists()
    with owner(path) as (process, epoch):
        found = holder(path)
        assert found is not None
        assert (found["pid"], found["epoch"]) == (process.pid, epoch)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert holder(path) is None  # though what it wrote of itself is still there
        assert (tmp_path / "lease.json").exists()
    with Lease(path) as lease:
        assert lease.epoch == epoch + 1
        found = holder(path)
        assert found is not None
        assert found["pid"] == os.getpid()
    assert holder(path) is None
    path.write_bytes(b"no database" * 100)
    assert holder(path) is None
