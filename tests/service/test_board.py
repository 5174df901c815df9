"""The board's contract, the same tests for every backend."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from board_cases import Rig, job

from search_spaces.faults import Invalid
from service.board import Board, Job, LeaseLost, open_board
from service.board.contract import IDLE, LEASED, PRIORITY, STATUSES
from service.board.rules import MOST_PROGRESS
from trials.store import NotFound

TTL = 15.0


def claimed(board: Board, **options: Any) -> Job:
    found = board.claim("r", TTL, **options)
    assert found is not None
    return found


def ids(jobs: list[Job]) -> list[str]:
    return [found.id for found in jobs]


# -- post, get, list ---------------------------------------------------------------------------------------------------


def test_what_is_posted_is_what_stands_there(rig: Rig) -> None:
    given = job(
        "digits-1",
        name="Ziffern <b>\u00e9\x00",
        owner="ada:b",
        priority=99,
        workers=7,
        goal=3,
        wanted="pause",
        why="because",
        created=1700000000.123456,
        by_hand=True,
        failures=2,
        waits=9.0,
        progress={"finished": 3, "best": [1, None]},
        seq=77,
        runner="me",
        epoch=5,
        seconds_left=3.0,
        beat=4,
    )
    posted = rig.board.post(given)
    waits = posted.waits
    assert 0 < waits <= 9
    wanted = dataclasses.replace(given, seq=1, runner="", epoch=0, seconds_left=0.0, beat=0, waits=waits)
    assert posted == wanted
    assert dataclasses.replace(rig.again().get("digits-1"), waits=waits) == wanted


def test_posting_again_changes_nothing(rig: Rig) -> None:
    first = rig.board.post(job("a", name="first"))
    claimed(rig.board)
    again = rig.board.post(job("a", name="second", priority=50))
    assert (again.name, again.priority, again.seq, again.leased) == ("first", 10, first.seq, True)
    assert len(rig.board.list()) == 1


def test_posting_at_once_from_many_threads_is_posting_once(rig: Rig) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: rig.board.post(job("a", name=str(n))), range(32)))
    assert len({(one.seq, one.name) for one in found}) == 1


def test_values_are_passed_not_shared(rig: Rig) -> None:
    progress: dict[str, Any] = {"finished": 1, "curve": [1.0]}
    rig.board.post(job("a", progress=progress))
    progress["curve"].append(2.0)
    told = rig.board.get("a")
    dict.__setitem__(told.progress, "finished", 99)  # type: ignore[arg-type]
    assert rig.board.get("a").progress == {"finished": 1, "curve": [1.0]}


def test_lists_are_pages_the_last_posted_first(rig: Rig) -> None:
    for n in range(7):
        rig.board.post(job(f"s{n}", owner="ada" if n % 2 else "bob"))
    first = rig.board.list(limit=3)
    assert ids(first) == ["s6", "s5", "s4"]
    assert ids(rig.board.list(limit=3, before=first[-1].seq)) == ["s3", "s2", "s1"]
    assert ids(rig.board.list(limit=3, before=2)) == ["s0"]
    assert rig.board.list(before=1) == []
    assert ids(rig.board.list(owner="ada")) == ["s5", "s3", "s1"]
    assert ids(rig.board.list(owner="ada", limit=1, before=6)) == ["s3"]
    assert rig.board.list(owner="") == []
    assert rig.board.list(statuses=[]) == []
    assert len(rig.board.list(statuses=STATUSES)) == 7


def test_a_filter_looks_beyond_one_page(rig: Rig) -> None:
    rig.board.post(job("last", wanted="pause"))
    for n in range(300):
        rig.board.post(job(f"s{n}"))
    assert ids(rig.board.list(statuses=["paused"], limit=1)) == ["last"]


@pytest.mark.parametrize("verb", ["get", "renew", "finish", "fail", "control"])
def test_an_unknown_id_is_not_found_and_the_nearest_is_named(rig: Rig, verb: str) -> None:
    rig.board.post(job("digits-3fa2b1"))
    more: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "get": ((), {}),
        "renew": ((1, TTL), {}),
        "finish": ((1,), {}),
        "fail": ((1,), {}),
        "control": ((), {"goal": 1, "wanted": "run", "workers": 1}),
    }
    arguments, options = more[verb]
    with pytest.raises(NotFound, match="digits-3fa2b1"):
        getattr(rig.board, verb)("digits-3fa2b", *arguments, **options)


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_follows_from_the_facts_and_filters_agree(rig: Rig) -> None:
    board = rig.board
    for wanted in LEASED:
        board.post(job(f"leased-{wanted}"))
        held = claimed(board)
        if wanted != "run":
            board.control(held.id, goal=1, wanted=wanted, workers=1)
    for wanted in IDLE:
        board.post(job(f"idle-{wanted}", wanted=wanted))
    for over in ("complete", "failed"):
        board.post(job(f"over-{over}", over=over))
    expected = {f"leased-{wanted}": status for wanted, status in LEASED.items()}
    expected |= {f"idle-{wanted}": status for wanted, status in IDLE.items()}
    expected |= {"over-complete": "complete", "over-failed": "failed"}
    assert {found.id: found.status for found in board.list()} == expected
    for status in STATUSES:
        assert ids(board.list(statuses=[status])) == [id for id, its in expected.items() if its == status]
    rig.passes(TTL + 1)
    ended = {f"leased-{wanted}": IDLE[wanted] for wanted in LEASED}
    assert {found.id: found.status for found in board.list()} == expected | ended


# -- claim -------------------------------------------------------------------------------------------------------------


def test_the_highest_priority_goes_first_then_the_owner_with_least_then_the_first_posted(rig: Rig) -> None:
    for id, owner, priority in [
        ("a1", "ada", 10),
        ("a2", "ada", 10),
        ("b1", "bob", 10),
        ("b2", "bob", 10),
        ("low", "cy", 1),
        ("high", "ada", 90),
    ]:
        rig.board.post(job(id, owner=owner, priority=priority))
    # ada's high one counts against her: bob is next, then a1 (equal, posted first), then b2 again
    assert [claimed(rig.board).id for _ in range(6)] == ["high", "b1", "a1", "b2", "a2", "low"]
    assert rig.board.claim("r", TTL) is None


def test_quotas_bound_what_an_owner_has_at_once(rig: Rig) -> None:
    for n in range(3):
        for owner in ("ada", "bob", "cy:1"):
            rig.board.post(job(f"{owner[:2]}{n}", owner=owner))
    quotas = {"ada": 2, "cy:1": 0, "*": 1}
    found = []
    while got := rig.board.claim("r", TTL, quotas=quotas):
        found.append(got)
    assert sorted(one.owner for one in found) == ["ada", "ada", "bob"]
    bobs = next(one for one in found if one.owner == "bob")
    rig.board.finish(bobs.id, bobs.epoch, over="complete")
    assert claimed(rig.board, quotas=quotas).owner == "bob"
    rig.passes(TTL + 1)  # what has expired counts no more
    assert rig.board.claim("r", TTL, quotas={"bob": 1, "*": 0}) is not None
    assert rig.board.claim("r", TTL, quotas={"bob": 1, "*": 0}) is None


def test_a_quota_does_not_hide_lower_priorities(rig: Rig) -> None:
    rig.board.post(job("a", owner="ada", priority=90))
    rig.board.post(job("b", owner="bob", priority=1))
    assert claimed(rig.board, quotas={"ada": 0}).id == "b"


def test_what_is_not_queued_is_not_claimed(rig: Rig) -> None:
    for wanted in ("pause", "stop", "cancel"):
        rig.board.post(job(wanted, wanted=wanted))
    for over in ("complete", "failed"):
        rig.board.post(job(over, over=over))
    rig.board.post(job("hand", by_hand=True))
    rig.board.post(job("later", waits=5.0))
    assert rig.board.claim("r", TTL) is None
    rig.passes(5.1)
    assert claimed(rig.board).id == "later"


def test_an_epoch_rises_whatever_happened(rig: Rig) -> None:
    rig.board.post(job("a"))
    epochs = [claimed(rig.board).epoch]
    rig.passes(TTL + 1)
    epochs.append(claimed(rig.board).epoch)
    rig.board.fail("a", epochs[-1])
    epochs.append(claimed(rig.board).epoch)
    rig.board.finish("a", epochs[-1], over="complete")
    assert rig.board.get("a").epoch == epochs[-1]
    rig.board.control("a", goal=1, wanted="run", workers=1)
    epochs.append(claimed(rig.board).epoch)
    assert epochs == sorted(set(epochs))
    assert epochs[-1] < 2**53, "it stays exact as JSON"


def test_an_expired_lease_is_nobodys(rig: Rig) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    assert (held.runner, held.status) == ("r", "running")
    rig.passes(TTL - 1)
    assert 0 < rig.board.get("a").seconds_left <= 1
    assert rig.board.claim("s", TTL) is None
    rig.passes(1.001)
    told = rig.board.get("a")
    assert (told.status, told.runner, told.seconds_left, told.epoch) == ("queued", "", 0.0, held.epoch)
    with pytest.raises(LeaseLost):  # not even where nobody else has it
        rig.board.renew("a", held.epoch, TTL)
    second = rig.board.claim("s", TTL)
    assert second is not None
    assert second.runner == "s"


def test_renewing_keeps_a_lease(rig: Rig) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    for _ in range(5):
        rig.passes(TTL - 1)
        assert TTL - 1 < rig.board.renew("a", held.epoch, TTL).seconds_left <= TTL
    rig.board.renew("a", held.epoch, 2.0)  # shorter, if one so wishes
    rig.passes(2.1)
    assert rig.board.get("a").status == "queued"


def rush(board: Board, runner: str, start: Callable[[], Any], count: int) -> list[tuple[str, int]]:
    start()
    found = []
    for _ in range(count):
        got = board.claim(runner, TTL)
        if got:
            found.append((got.id, got.epoch))
    return found


def test_sixteen_threads_at_once_get_one_lease_a_job(rig: Rig) -> None:
    for n in range(40):
        rig.board.post(job(f"s{n}", owner=f"o{n % 3}"))
    boards = [rig.again() for _ in range(4)]
    gate = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        runs = [pool.submit(rush, boards[n % 4], f"r{n}", gate.wait, 5) for n in range(16)]
        found = [one for run in runs for one in run.result()]
    assert sorted(id for id, _ in found) == sorted(f"s{n}" for n in range(40))
    assert len({rig.board.get(id).runner for id, _ in found}) > 1
    assert all(rig.board.get(id).epoch == epoch for id, epoch in found)


def _process(url: str, runner: str, gate: Any, results: Any) -> None:
    board = open_board(url)
    results.put(rush(board, runner, gate.wait, 12))
    board.close()


@pytest.mark.slow
def test_four_processes_at_once_get_one_lease_a_job(rig: Rig) -> None:
    for n in range(40):
        rig.board.post(job(f"s{n}"))
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_process, args=(rig.url, f"r{n}", gate, results)) for n in range(4)]
    for worker in workers:
        worker.start()
    found = [one for _ in workers for one in results.get(timeout=120)]
    for worker in workers:
        worker.join()
    assert sorted(id for id, _ in found) == sorted(f"s{n}" for n in range(40))


# -- renew, finish, fail -----------------------------------------------------------------------------------------------


def test_progress_is_replaced_counted_and_kept(rig: Rig) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    assert rig.board.renew("a", held.epoch, TTL).beat == 0
    rig.board.renew("a", held.epoch, TTL, {"finished": 3, "old": 1})
    told = rig.board.renew("a", held.epoch, TTL, {"finished": 4})
    assert (told.progress, told.beat) == ({"finished": 4}, 2)
    assert rig.board.renew("a", held.epoch, TTL).progress == {"finished": 4}
    assert rig.board.finish("a", held.epoch, over="complete").progress == {"finished": 4}


def test_progress_holds_what_is_not_finite(rig: Rig) -> None:
    rig.board.post(job("a"))
    said = {"best": math.nan, "worst": [math.inf, -math.inf], "text": "NaN", "tiny": 5e-324, "\u00e9": {"n": 2**60}}
    told = rig.board.renew("a", claimed(rig.board).epoch, TTL, said).progress
    assert math.isnan(told["best"])
    assert {**told, "best": 0} == {**said, "best": 0}


def test_too_much_progress_is_refused_and_the_lease_stays(rig: Rig) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    for wrong, words in [({"curve": "x" * MOST_PROGRESS}, "bytes"), ({"x": {1, 2}}, "plain data")]:
        with pytest.raises(Invalid, match=words):
            rig.board.renew("a", held.epoch, TTL, wrong)
    assert rig.board.get("a").leased
    assert rig.board.get("a").beat == 0


@pytest.mark.parametrize("how", ["expired", "taken", "failed", "finished", "wrong"])
def test_whoever_lost_the_lease_changes_nothing(rig: Rig, how: str) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    if how in ("expired", "taken"):
        rig.passes(TTL + 1)
    if how == "taken":
        assert rig.board.claim("other", TTL) is not None
    if how == "failed":
        rig.board.fail("a", held.epoch)
    if how == "finished":
        rig.board.finish("a", held.epoch, over="complete")
    epoch = held.epoch - 1 if how == "wrong" else held.epoch
    before = rig.board.get("a")
    with pytest.raises(LeaseLost, match=str(epoch)):
        rig.board.renew("a", epoch, TTL, {"finished": 1})
    with pytest.raises(LeaseLost):
        rig.board.finish("a", epoch, over="failed", why="stale")
    with pytest.raises(LeaseLost):
        rig.board.fail("a", epoch, why="stale", delay=9)
    after = rig.board.get("a")
    assert dataclasses.replace(after, seconds_left=0) == dataclasses.replace(before, seconds_left=0)
    assert after.leased == before.leased


def test_finishing(rig: Rig) -> None:
    rig.board.post(job("a"))
    told = rig.board.finish("a", claimed(rig.board).epoch, over="failed", why="no data")
    assert (told.status, told.why, told.runner) == ("failed", "no data", "")
    assert rig.board.claim("r", TTL) is None


def test_a_finish_by_an_older_goal_ends_nothing(rig: Rig) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    rig.board.control("a", goal=2, wanted="run", workers=4)
    told = rig.board.finish("a", held.epoch, over="complete", why="x", goal=1)
    assert (told.status, told.over, told.why, told.claimable) == ("queued", "", "", True)
    again = claimed(rig.board)
    assert rig.board.finish("a", again.epoch, over="complete", goal=2).status == "complete"


def test_a_finish_of_what_was_paused_leaves_it_paused(rig: Rig) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    assert rig.board.control("a", goal=1, wanted="pause", workers=1).status == "pausing"
    assert rig.board.finish("a", held.epoch, goal=1).status == "paused"
    assert rig.board.claim("r", TTL) is None
    rig.board.control("a", goal=2, wanted="run", workers=1)
    assert claimed(rig.board).id == "a"


def test_failing_waits_and_blames(rig: Rig) -> None:
    rig.board.post(job("a"))
    told = rig.board.fail("a", claimed(rig.board).epoch, why="node lost", delay=30.0)
    assert (told.status, told.failures, told.why, told.claimable) == ("queued", 1, "node lost", False)
    assert 29 < told.waits <= 30
    assert rig.board.claim("r", TTL) is None
    rig.passes(30.1)
    told = rig.board.fail("a", claimed(rig.board).epoch, blame=False)
    assert (told.failures, told.claimable, told.waits) == (1, True, 0.0)
    assert rig.board.fail("a", claimed(rig.board).epoch).failures == 2


# -- control -----------------------------------------------------------------------------------------------------------


def test_a_higher_goal_clears_what_came_before(rig: Rig) -> None:
    rig.board.post(job("a"))
    rig.board.fail("a", claimed(rig.board).epoch, why="x", delay=60.0)
    told = rig.board.control("a", goal=1, wanted="run", workers=3, priority=40)
    assert (told.failures, told.why, told.waits, told.goal, told.workers) == (0, "", 0.0, 1, 3)
    assert (told.priority, told.claimable) == (40, True)
    rig.board.finish("a", claimed(rig.board).epoch, over="failed", why="y", goal=1)
    told = rig.board.control("a", goal=5, wanted="run", workers=1)
    assert (told.over, told.why, told.claimable) == ("", "", True)
    rig.board.post(job("hand", by_hand=True))
    assert rig.board.control("hand", goal=1, wanted="run", workers=1).claimable


@pytest.mark.parametrize("goal", [1, 2])
def test_a_goal_that_is_not_higher_changes_nothing(rig: Rig, goal: int) -> None:
    rig.board.post(job("a", goal=2, over="complete", why="z", by_hand=True, failures=3, waits=9.0))
    told = rig.board.control("a", goal=goal, wanted="cancel", workers=9, priority=77)
    kept = (told.goal, told.wanted, told.workers, told.over, told.why, told.by_hand, told.failures, told.priority)
    assert kept == (2, "run", 1, "complete", "z", True, 3, PRIORITY)
    assert told.waits > 0


def test_control_leaves_the_lease_alone(rig: Rig) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    told = rig.board.control("a", goal=1, wanted="cancel", workers=2, priority=3)
    assert (told.runner, told.epoch, told.status) == ("r", held.epoch, "cancelling")
    rig.board.renew("a", held.epoch, TTL)


def test_a_priority_moves_what_is_queued(rig: Rig) -> None:
    rig.board.post(job("a"))
    rig.board.post(job("b"))
    rig.board.control("b", goal=1, wanted="run", workers=1, priority=11)
    assert claimed(rig.board).id == "b"
    assert claimed(rig.board).id == "a"
    assert rig.board.claim("r", TTL) is None


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_every_fault_of_a_job_is_named_at_once(rig: Rig) -> None:
    wrong = job(
        "../a",
        priority=0,
        workers=0,
        goal=-1,
        wanted="halt",
        over="won",
        waits=math.nan,
        failures=True,
        created=math.inf,
    )
    with pytest.raises(Invalid) as caught:
        rig.board.post(wrong)
    assert len(caught.value.faults) == 9
    assert rig.board.list() == []


def test_what_makes_no_sense_is_refused(rig: Rig) -> None:
    rig.board.post(job("a"))
    for ttl in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(Invalid, match="ttl"):
            rig.board.claim("r", ttl)
    with pytest.raises(Invalid, match="runner"):
        rig.board.claim("", TTL)
    with pytest.raises(Invalid, match="priority"):
        rig.board.control("a", goal=1, wanted="run", workers=1, priority=101)
    with pytest.raises(Invalid, match="running"):
        rig.board.list(statuses=["runing"])
    with pytest.raises(Invalid, match="limit"):
        rig.board.list(limit=0)
    held = claimed(rig.board)
    with pytest.raises(Invalid, match="complete"):
        rig.board.finish("a", held.epoch, over="completed")
    with pytest.raises(Invalid, match="delay"):
        rig.board.fail("a", held.epoch, delay=-1.0)
    assert rig.board.get("a").leased


def test_text_that_is_no_text_is_held_anyway(rig: Rig) -> None:
    rig.board.post(job("a", owner="o\udcff"))
    why = "Traceback \udc80 \x00 \u2713" + "x" * 10_000
    told = rig.board.fail("a", claimed(rig.board).epoch, why=why)
    assert told.why.startswith("Traceback \\udc80 \x00 \u2713")
    assert len(told.why) < 5000
    assert ids(rig.board.list(owner="o\udcff")) == ["a"]


def test_a_server_or_file_of_ours_opens_again_with_all_it_had(rig: Rig) -> None:
    rig.board.post(job("a"))
    held = claimed(rig.board)
    other = rig.again()
    assert other.get("a").epoch == held.epoch
    other.renew("a", held.epoch, TTL, {"finished": 1})
    assert rig.board.get("a").beat == 1


def test_a_thousand_queued_do_not_slow_a_claim_down(rig: Rig) -> None:
    for n in range(1000):
        rig.board.post(job(f"s{n}", owner=f"o{n % 10}", priority=1 + n % 5))
    began = time.monotonic()
    assert len({claimed(rig.board).id for _ in range(50)}) == 50
    assert time.monotonic() - began < 30, "a guard, far above what it takes"


def test_real_time_ends_a_lease(rig: Rig) -> None:
    board = open_board(rig.url)
    board.post(job("a"))
    held = board.claim("r", 0.15)
    assert held is not None
    until = time.monotonic() + 20
    while (got := board.claim("s", TTL)) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert got.epoch > held.epoch
    with pytest.raises(LeaseLost):
        board.renew("a", held.epoch, TTL)
    board.close()
