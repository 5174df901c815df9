"""Which slots are proposed, which leave, and when a search is given up: Tune's questions, asked without Ray at work."""

from __future__ import annotations

from typing import Any

import pytest

from service.executors.ray_host import Host, Left
from trials.records import Bundle

ray_tune = pytest.importorskip("service.executors.ray_tune")


class Fake:
    """A controller that is never over, in a cluster with so many lost nodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost_nodes, self.now, self.left = 0, 0.0, Left(pulled=False, words="")
        self.told: list[str] = []
        monkeypatch.setattr(ray_tune, "_nodes", lambda: [{"Alive": True}] + [{"Alive": False}] * self.lost_nodes)
        monkeypatch.setattr(ray_tune.time, "monotonic", lambda: self.now)

    def over(self) -> bool:
        return False

    def gone(self, slot: str) -> Left:
        self.told.append(slot)
        return self.left


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def searcher(fake: Fake, workers: int) -> Any:
    return ray_tune.SlotSearcher(fake, workers)


def proposed(slots: Any) -> list[int]:
    """All that it proposes now."""
    found = []
    while isinstance(answer := slots.suggest(f"t{slots._number}"), dict):
        found.append(answer["slot"])
    return found


def test_so_many_slots_as_are_wanted(fake):
    slots = searcher(fake, 2)
    assert proposed(slots) == [0, 1]
    slots.wanted = 4
    assert proposed(slots) == [2, 3]
    slots.on_trial_complete("t1", error=True)
    assert fake.told == ["ray-1"]
    assert proposed(slots) == [4]
    assert list(slots.surplus()) == []


def test_the_newest_leave_and_only_once(fake):
    slots = searcher(fake, 4)
    proposed(slots)
    slots.wanted = 2
    assert [slot.name for _, slot in slots.surplus()] == ["ray-3", "ray-2"]
    assert list(slots.surplus()) == []
    assert proposed(slots) == []
    slots.wanted = 3
    assert proposed(slots) == [4]  # those that leave do not come back
    slots.on_trial_complete("t3")
    assert fake.told == []  # it was done


def test_slots_that_die_in_silence_end_the_search_only_after_a_while(fake):
    slots = searcher(fake, 8)
    proposed(slots)
    for i in range(8):
        slots.on_trial_complete(f"t{i}", error=True)
    assert slots.why == ""  # their node may be lost, and Ray not know it yet
    proposed(slots)
    fake.now = ray_tune.NOTICE + 1
    slots.on_trial_complete("t8", error=True)
    assert "died before they began" in slots.why
    assert proposed(slots) == []


def test_what_a_lost_node_took_along_ends_nothing(fake):
    slots = searcher(fake, 8)
    proposed(slots)
    fake.lost_nodes = 1
    for i in range(8):
        fake.now += ray_tune.NOTICE
        slots.on_trial_complete(f"t{i}", error=True)
    assert slots.why == ""
    assert proposed(slots) == list(range(8, 16))


def test_slots_that_pulled_are_replaced_for_ever(fake):
    slots, fake.left = searcher(fake, 1), Left(pulled=True, words="")
    for i in range(50):
        assert proposed(slots) == [i]
        slots.on_trial_complete(f"t{i}", error=True)
        fake.now += ray_tune.NOTICE
    assert slots.why == ""


def test_slots_that_say_why_end_the_search_soon(fake):
    slots, fake.left = searcher(fake, 3), Left(pulled=False, words="ImportError: no engine here")
    proposed(slots)
    for i in range(3):
        slots.on_trial_complete(f"t{i}", error=True)
    assert slots.why.endswith("the last one said: ImportError: no engine here")


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "slots"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 1.0}, 0.1, 0, 10),
        ({"CPU": 8.0}, 1, 1, 0),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.4, 4),  # a fraction is never of two GPUs
        ({"CPU": 8.0, "GPU": 2.0}, 0, 0.1, 20),
        ({"CPU": 8.0, "GPU": 4.0}, 1, 2, 2),
    ],
)
def test_how_many_slots_a_node_has_room_for(resources, cpus, gpus, slots):
    assert ray_tune.room(resources, cpus, gpus) == slots


class Patient:
    """A controller without work that notes how long it was asked to wait."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def pull(self, worker: str, timeout: float) -> Bundle | None:
        self.waits.append(timeout)
        return None

    def lost(self, worker: str, words: str) -> None:
        """Nothing."""


def test_a_host_keeps_its_roll_and_never_has_all_its_calls_wait(monkeypatch):
    monkeypatch.setattr("service.executors.ray_host.end_with_parent", lambda: None)
    host, controller = Host(), Patient()
    host.begin(lambda: controller)  # type: ignore[arg-type,return-value]
    assert host.pull("ray-1-100") is None
    assert host.live() == 1
    host.say("ray-2", "no memory")
    assert host.gone("ray-1") == Left(pulled=True, words="")
    assert host.gone("ray-2") == Left(pulled=False, words="no memory")
    assert host.live() == 0
    while host._seats.acquire(blocking=False):
        pass  # everybody else waits for a bundle
    assert host.pull("ray-3-300") is None
    assert controller.waits == [1.0, 0.0]
