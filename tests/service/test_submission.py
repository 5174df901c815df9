"""Submitting: judged by declaration alone, durable before it is posted, and once for each key."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from api_cases import OBJECTIVE, SPEC, Unpluggable

from search_spaces.faults import Invalid
from service.board.rebuild import rebuild
from service.board.sqlite import SQLiteBoard
from service.goal import Edit, change
from service.spec import SearchSpec
from service.submission import KeyReused, requirement_faults, submit
from trials import layout
from trials.store import Store


@pytest.fixture
def board(tmp_path: Path) -> Any:
    found = Unpluggable(SQLiteBoard(tmp_path / "board.sqlite"))
    yield found
    found.close()


def code_in(store: Store) -> str:
    sha = hashlib.sha256(b"zip").hexdigest()
    path = layout.code(store.root, sha)
    path.parent.mkdir()
    path.write_bytes(b"zip")
    return sha


def test_a_search_is_stored_whole_and_posted(store: Store, board: Any) -> None:
    job, new = submit(store, board, SPEC, owner="ada", priority=30, requirements=["numpy>=2"])
    assert new
    assert (job.name, job.owner, job.priority, job.workers, job.status) == ("digits", "ada", 30, 2, "queued")
    assert board.get(job.id) == job
    document = store.search(job.id).spec()
    assert SearchSpec.from_dict(document["spec"]).to_dict() == document["spec"]
    assert {key: document[key] for key in ("directory", "code", "requirements", "owner", "priority", "submitted")} == {
        "directory": "",
        "code": None,
        "requirements": ["numpy>=2"],
        "owner": "ada",
        "priority": 30,
        "submitted": True,
    }
    assert document["request"]["key"] is None
    assert set(document["versions"]) == {"torch", "optuna", "pyarrow"}


def test_every_fault_is_told_at_once_and_nothing_is_made(store: Store, board: Any) -> None:
    with pytest.raises(Invalid) as caught:
        submit(
            store,
            board,
            {"task": "uci/digits", "budgets": 3},
            priority=0,
            code="abc",
            requirements=["-r x", "git+https://x"],
        )
    text = str(caught.value)
    for part in ("priority:", "code:", "requirements[0]:", "requirements[1]:", "'budgets'", "space:", "budget:"):
        assert part in text
    assert store.searches() == []
    assert board.list() == []


def test_code_must_be_there_and_own_modules_need_it(store: Store, board: Any) -> None:
    with pytest.raises(Invalid, match=r"spec\.task: `module:attribute` is looked for in the code"):
        submit(store, board, OBJECTIVE)
    with pytest.raises(Invalid, match=r"spec\.network: `module:attribute`"):
        submit(store, board, {**SPEC, "network": "nets:mine"})
    with pytest.raises(Invalid, match=r"PUT /v1/code/0{64}"):
        submit(store, board, OBJECTIVE, code="0" * 64)
    sha = code_in(store)
    job, _ = submit(store, board, OBJECTIVE, code=sha)
    assert store.search(job.id).spec()["code"] == sha


def test_a_comparison_is_sent_elsewhere(store: Store, board: Any) -> None:
    with pytest.raises(Invalid, match="continua compare"):
        submit(store, board, {**SPEC, "arms": {"a": {}}})


def test_a_file_of_the_workers_may_be_named(store: Store, board: Any) -> None:
    job, _ = submit(store, board, {**SPEC, "task": "/data/no-such-file-here.csv"})
    assert store.search(job.id).spec()["spec"]["task"] == "/data/no-such-file-here.csv"


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, ("val_error", "min")),
        ({"metric": "val_accuracy"}, ("val_accuracy", "max")),
        ({"metric": "val_r2"}, ("val_r2", "max")),
        ({"metric": "val_loss"}, ("val_loss", "min")),
        ({"metric": "val_accuracy", "mode": "min"}, ("val_accuracy", "min")),
    ],
)
def test_which_way_is_better_is_stored(store: Store, board: Any, objective: Any, expected: tuple[str, str]) -> None:
    job, _ = submit(store, board, {**SPEC, "objective": objective})
    found = store.search(job.id).spec()["spec"]["objective"]
    assert (found["metric"], found["mode"]) == expected


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("uci/diabetes", ("val_mse", "min")),
        ({"kind": "table", "path": "/data/cars.csv", "task": "regression"}, ("val_mse", "min")),
        ({"kind": "table", "path": "/data/cars.csv"}, ("auto", "min")),
        ({"kind": "images", "train": "/data/train.parquet"}, ("val_error", "min")),
    ],
)
def test_a_metric_left_to_the_task_is_stored_where_no_data_is_needed(
    store: Store, board: Any, task: Any, expected: tuple[str, str]
) -> None:
    job, _ = submit(store, board, {**SPEC, "task": task})
    found = store.search(job.id).spec()["spec"]["objective"]
    assert (found["metric"], found["mode"]) == expected


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "../../etc", "Ünïcödé", "-", "x" * 200, "con:?*|"])
def test_a_name_is_never_a_path(store: Store, board: Any, name: str) -> None:
    job, _ = submit(store, board, SPEC, name=name)
    assert job.name == name
    assert layout.id_faults("", job.id) == []
    assert os.listdir(layout.searches(store.root)) == [job.id]


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_makes_one_search(store: Store, board: Any) -> None:
    first, new = submit(store, board, SPEC, owner="ada", key="k1")
    again, newer = submit(store, board, SPEC, owner="ada", key="k1")
    assert (new, newer) == (True, False)
    assert again == first
    assert submit(store, board, SPEC, owner="ada", key="k2")[0].id != first.id
    assert submit(store, board, SPEC, owner="bob", key="k1")[0].id != first.id
    assert len(store.searches()) == 3
    with pytest.raises(KeyReused, match=first.id):
        submit(store, board, {**SPEC, "seed": 9}, owner="ada", key="k1")
    with pytest.raises(KeyReused):
        submit(store, board, SPEC, owner="ada", key="k1", priority=11)


@pytest.mark.parametrize("bodies", [1, 4])
def test_twenty_at_once_with_one_key_make_one_search(store: Store, board: Any, bodies: int) -> None:
    made: list[tuple[str, bool]] = []
    refused: list[int] = []
    start = threading.Barrier(20)

    def send(i: int) -> None:
        spec = {**SPEC, "name": f"search {i % bodies}"}
        start.wait()
        try:
            job, new = submit(store, board, spec, owner="ada", key="k")
            made.append((job.id, new))
        except KeyReused:
            refused.append(i)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({search_id for search_id, _ in made}) == 1
    assert Counter(new for _, new in made)[True] == 1
    assert (len(made), len(refused)) == (20 // bodies, 20 - 20 // bodies)
    assert store.searches() == [made[0][0]]
    assert [job.id for job in board.list()] == store.searches()


def test_a_first_sender_that_died_is_finished_by_the_next(
    store: Store, board: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", die)
        with pytest.raises(KeyboardInterrupt):
            submit(store, board, SPEC, owner="ada", key="k")
    assert store.searches() == []
    job, new = submit(store, board, SPEC, owner="ada", key="k")
    assert new
    assert store.searches() == [job.id]


@pytest.mark.parametrize("key", ["", " x", "a" * 256, "a\nb", "ä"])
def test_a_key_is_short_visible_text(store: Store, board: Any, key: str) -> None:
    with pytest.raises(Invalid, match="Idempotency-Key"):
        submit(store, board, SPEC, key=key)


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_board_that_does_not_answer_undoes_nothing(store: Store, board: Any) -> None:
    board.plugged = False
    job, new = submit(store, board, SPEC, owner="ada", key="k")
    assert new
    assert job.seq == 0
    assert store.searches() == [job.id]
    board.plugged = True
    assert rebuild(store, board) == 1
    assert board.get(job.id).status == "queued"
    assert submit(store, board, SPEC, owner="ada", key="k")[0].seq > 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Invalid(["board: is a file of others"])])
def test_a_board_that_fails_after_the_search_is_durable_undoes_nothing(
    store: Store, board: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteBoard, "post", fail)
        job, new = submit(store, board, SPEC, owner="ada", priority=3, key="k")
    assert (new, job.seq, job.status, job.owner, job.priority) == (True, 0, "queued", "ada", 3)
    assert rebuild(store, board) == 1
    assert (board.get(job.id).owner, board.get(job.id).priority) == ("ada", 3)
    assert submit(store, board, SPEC, owner="ada", priority=3, key="k")[1] is False


def test_a_repeated_request_to_a_new_board_posts_what_holds_now(store: Store, board: Any, tmp_path: Path) -> None:
    job, _ = submit(store, board, SPEC, owner="ada", key="k")
    change(store.search(job.id), Edit(verb="pause"))
    other = SQLiteBoard(tmp_path / "other.sqlite")
    again, new = submit(store, other, SPEC, owner="ada", key="k")
    other.close()
    assert not new
    assert (again.status, again.goal) == ("paused", 1)


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_is_not_durable_is_not_there(
    store: Store, board: Any, monkeypatch: pytest.MonkeyPatch, nth: int, code: int
) -> None:
    calls = []
    real = os.fsync

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == nth:
            raise OSError(code, os.strerror(code))
        real(handle)

    (store.root / "requests").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=os.strerror(code)):
            submit(store, board, SPEC, owner="ada", key="k")
    assert store.searches() == []
    assert board.list() == []
    job, _ = submit(store, board, SPEC, owner="ada", key="k")  # and the retry goes through
    assert store.searches() == [job.id]


def test_requirements_are_names_with_versions() -> None:
    fine = ["numpy", "scikit-image==0.25.0", "a[b,c]>=1,<2", "x ~= 1.2", "y!=1.*"]
    assert requirement_faults(fine) == []
    bad = [
        "",
        "-e .",
        "--index-url=http://x",
        "git+https://x/y",
        "a @ file:///x",
        "../x",
        "a\nb",
        "a;b",
        "a" * 201,
        3,
        None,
    ]
    assert len(requirement_faults(bad)) == len(bad)
    assert len(requirement_faults("numpy")) == 1
    assert len(requirement_faults(["a"] * 101)) == 1
