"""Checkpoints as files: exact, whole or not at all, one an attempt, and damage that is always found."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from store_cases import fail_fsync

from trials import checkpoints, layout
from trials.records import Checkpoint, Start
from trials.resuming import picked
from trials.store import Damaged, SearchStore, Store

SEEDS = 2


@pytest.fixture
def search(tmp_path: Path) -> SearchStore:
    return Store(tmp_path).create("s", {"name": "digits"})


def checkpoint(step: int, bundle: str = "b0", attempt: int = 0, trials: tuple[int, ...] = (4, 7, 2)) -> Checkpoint:
    """Of trials with two replicates each; every lane's numbers name their lane."""
    lanes = torch.arange(len(trials) * SEEDS)
    tensors = {
        "program.weights": lanes[:, None] + torch.linspace(0, 0.9, 5),
        "outer.m": lanes.double() / 3,
        "outer.steps": torch.full((len(lanes),), step),
        "method.rested": (lanes % 2 == 0)[:, None].expand(-1, 3).contiguous(),
        "outer.dual": torch.zeros(len(lanes), 0, dtype=torch.float64),
    }
    return Checkpoint(bundle_id=bundle, attempt=attempt, step=step, trials=trials, tensors=tensors)


def start_of(c: Checkpoint) -> Start:
    return Start(bundle_id=c.bundle_id, attempt=c.attempt, step=c.step)


def assert_equal(got: Checkpoint, want: Checkpoint) -> None:
    assert (start_of(got), got.trials) == (start_of(want), want.trials)
    assert got.tensors.keys() == want.tensors.keys()
    for name, tensor in want.tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert got.tensors[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def files(search: SearchStore) -> list[Path]:
    return sorted((search.path / "checkpoints").iterdir())


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_number_comes_back_in_every_bit(search: SearchStore, dtype: torch.dtype) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 5e-324, 1e-45, 1 / 3, 3.4e38, -1e308], dtype=dtype)
    wanted = checkpoint(3)
    wanted = Checkpoint(**{**vars(wanted), "tensors": {**wanted.tensors, "odd": odd.repeat(6, 1)}})
    search.save_checkpoint(wanted)
    assert_equal(search.load_checkpoint(start_of(wanted), wanted.trials), wanted)


def test_some_of_its_trials_bring_their_lanes_in_the_order_asked_for(search: SearchStore) -> None:
    search.save_checkpoint(checkpoint(3))
    found = search.load_checkpoint(start_of(checkpoint(3)), [2, 4])
    assert found.trials == (2, 4)
    assert found.tensors["program.weights"][:, 0].tolist() == [4, 5, 0, 1]
    assert_equal(found, picked(checkpoint(3), [2, 4]))
    with pytest.raises(ValueError, match=r"\[9\] are not among its 4, 7, 2"):
        search.load_checkpoint(start_of(checkpoint(3)), [4, 9])


def test_the_latest_of_each_attempt_is_listed_by_names_alone(search: SearchStore) -> None:
    assert search.checkpoints() == {}
    for c in (checkpoint(7), checkpoint(20), checkpoint(5, attempt=1), checkpoint(1, "b.1-2", 3)):
        search.save_checkpoint(c)
    assert len(files(search)) == 3  # the one of step 7 is gone
    for path in files(search):
        path.write_bytes(b"")
    (search.path / "checkpoints" / "notes.txt").write_text("hello")
    assert search.checkpoints() == {("b0", 0): 20, ("b0", 1): 5, ("b.1-2", 3): 1}


def test_one_saved_twice_is_there_once(search: SearchStore) -> None:
    assert search.save_checkpoint(checkpoint(7)) == search.save_checkpoint(checkpoint(7))
    assert_equal(search.load_checkpoint(start_of(checkpoint(7)), (4, 7, 2)), checkpoint(7))


def test_what_is_forgotten_is_gone_and_nothing_else(search: SearchStore) -> None:
    for c in (checkpoint(7), checkpoint(5, attempt=10), checkpoint(3, "b0.0-x")):
        search.save_checkpoint(c)
    left = search.path / "checkpoints" / ".b0.0-0000000009-0123456789abcdef.safetensors.00ff00ff00ff.tmp"
    left.write_bytes(b"of a writer that was killed")
    checkpoints.forget(layout.checkpoints(search.path), "b0", 0)
    checkpoints.forget(layout.checkpoints(search.path), "b0", 0)
    assert search.checkpoints() == {("b0", 10): 5, ("b0.0-x", 0): 3}
    assert len(files(search)) == 2


def test_a_search_of_before_there_were_checkpoints_opens_and_takes_one(search: SearchStore) -> None:
    shutil.rmtree(search.path / "checkpoints")
    old = Store(search.path.parents[1]).search("s")
    assert old.checkpoints() == {}
    assert old.verify() == []
    checkpoints.forget(layout.checkpoints(old.path), "b0", 0)
    with pytest.raises(Damaged, match=r"no checkpoint of b0\.0 at step 7"):
        old.load_checkpoint(start_of(checkpoint(7)), [4])
    old.save_checkpoint(checkpoint(7))
    assert old.checkpoints() == {("b0", 0): 7}


# -- damage ------------------------------------------------------------------------------------------------------------


def broken(search: SearchStore, match: str) -> None:
    (path,) = files(search)
    with pytest.raises(Damaged, match=match) as caught:
        search.load_checkpoint(start_of(checkpoint(3)), [4])
    assert caught.value.path == path
    assert [damage.path for damage in search.verify()] == [path]


def test_truncated_and_flipped_bytes_are_found(search: SearchStore) -> None:
    path = search.save_checkpoint(checkpoint(3))
    whole = path.read_bytes()
    for length in {0, 7, 8, 100, len(whole) - 1}:
        path.write_bytes(whole[:length])
        broken(search, "digest")
    for place in range(0, len(whole), 61):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        broken(search, "digest")
    path.write_bytes(whole + b"\0")
    broken(search, "digest")
    path.write_bytes(whole)
    assert search.verify() == []


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"continua": '{"version": 999, "trials": [4]}'}, "version 999"),
        ({"continua": '{"trials": [4]}'}, "is not a checkpoint"),
        ({"continua": '{"version": 1}'}, "is not a checkpoint"),
        ({"continua": "4"}, "is not a checkpoint"),
        ({"format": "pt"}, "is not a checkpoint"),
        (None, "is not a checkpoint"),
    ],
)
def test_files_of_others_and_of_later_versions_are_damage(
    search: SearchStore, tmp_path: Path, told: dict[str, str] | None, match: str
) -> None:
    save_file({"program.weights": torch.zeros(1)}, tmp_path / "made", metadata=told)
    payload = (tmp_path / "made").read_bytes()
    name = f"b0.0-0000000003-{checkpoints._digest(payload)}.safetensors"
    (search.path / "checkpoints" / name).write_bytes(payload)
    broken(search, match)


def test_what_cannot_be_written_is_not_there_and_the_one_before_is(
    search: SearchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.save_checkpoint(checkpoint(3))
    with monkeypatch.context() as patch:
        fail_fsync(patch, 1)
        with pytest.raises(OSError, match="Input/output"):
            search.save_checkpoint(checkpoint(9))
    assert search.checkpoints() == {("b0", 0): 3}
    assert len(files(search)) == 1
    assert_equal(search.load_checkpoint(start_of(checkpoint(3)), (4, 7, 2)), checkpoint(3))


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one(search: SearchStore) -> None:
    rng, latest = random.Random(0), 0
    for _ in range(12):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _save_for_ever(search, latest, write)
        os.close(write)
        with open(read, "rb") as said:
            first = said.read(4)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            acknowledged = max(step for (step,) in struct.iter_unpack("<i", first + said.read()))
        latest = search.checkpoints()["b0", 0]
        assert acknowledged <= latest <= acknowledged + 1
        found = search.load_checkpoint(Start(bundle_id="b0", attempt=0, step=latest), [1])
        assert found.tensors["step"].tolist() == [latest]
        assert bool((found.tensors["w"] == latest).all())
        assert search.verify() == []
    search.save_checkpoint(checkpoint(latest + 1))
    assert len(files(search)) == 1  # what the killed ones had begun is gone too


def _save_for_ever(search: SearchStore, step: int, said: int) -> NoReturn:
    try:
        while True:
            step += 1
            numbers = {"w": np.full((2, 200_000), step, np.float32), "step": np.full(2, step)}
            tensors = {name: torch.from_numpy(n) for name, n in numbers.items()}
            search.save_checkpoint(Checkpoint(bundle_id="b0", attempt=0, step=step, trials=(0, 1), tensors=tensors))
            os.write(said, struct.pack("<i", step))
    finally:
        os._exit(1)
