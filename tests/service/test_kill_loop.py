"""Whoever of a service is killed, wherever: what was acknowledged is there afterwards, once, and the search goes on as
if nothing had happened.

One service is killed again and again, at every named point of `crash_points`, the API, the runner and the driver of a
search each at their own; then at random moments, all of it at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from board_cases import RedisServer
from crash_points import POINTS, arm, fired
from kill_cases import LANES, MORE, TRIALS, Customer, Service, objective_in, service_at, spec

from service.driver import run
from service.spec import check
from trials.store import Store

#: points that are come to only after others, mostly of another program
AFTER = {
    "fail before": ("told before",),
    "fail after": ("asked after",),
    "mirror before": ("control before",),
    "mirror after": ("goal after",),
}


def of(*roles: str, call: str = "") -> list[str]:
    return [name for name, point in POINTS.items() if point.role in roles and point.call.startswith(call)]


SUBMITTED, CHANGED = of("api")[:11], of("api")[11:]
EARLY = ("claim before", "claim after", "claim uncommitted", "begin after", "finish before", "finish after")
ELSE = [name for name in of("work") if name not in EARLY]


def chains() -> list[tuple[str, ...]]:
    """Every point of a driver and of the runner once, each in one search with two of the API."""
    found: list[tuple[str, ...]] = []
    for i, name in enumerate(of("drive")):
        found.append((SUBMITTED[i % len(SUBMITTED)], CHANGED[i % len(CHANGED)], EARLY[i % len(EARLY)], name))
    for i, name in enumerate(ELSE):
        before = AFTER.get(name, ())
        api = () if "control before" in before or "goal after" in before else (CHANGED[i],)
        found.append((SUBMITTED[i], *api, *before, name))
    return found


#: several searches with every call of a board, in both its kinds; some twice, as soon as somebody is back
ON_A_SERVER = [
    ("post before", "post before", "control after", "claim after", "finish before"),
    ("post after", "control before", "control before", "renew before", "finish after"),
    ("note after", "search before", "goal linked", "told before", "fail before", "told before"),
    ("asked after", "fail after", "asked after", "renew after", "finish before"),
    ("control before", "claim before", "mirror before"),
    ("goal after", "mirror after"),
]
WITH_WORKERS = [("pulled after", "finish unsaid"), ("trained before", "finish said")]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The points that the search has which nobody disturbs, by number."""
    path = tmp_path_factory.mktemp("undisturbed")
    directory, store = objective_in(path / "code", path / "oracle", 0.0), Store(path / "store")
    declared, task = check(spec("undisturbed", TRIALS + MORE), directory=directory)
    result = run(declared, task, store, executor="here", directory=directory)
    asked = [event.body for event in store.search(result.search_id).log() if event.kind == "asked"]
    return {trial["number"]: trial["point"]["x"] for body in asked for trial in body["trials"]}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the default board, whose drivers train themselves."""
    with service_at(tmp_path_factory.mktemp("service"), "here") as made:
        yield made


@pytest.fixture(scope="module")
def on_redis(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """The same on a real server that keeps nothing."""
    with service_at(tmp_path_factory.mktemp("service"), "here", redis_server) as made:
        yield made


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose drivers have workers."""
    with service_at(tmp_path_factory.mktemp("service"), "local") as made:
        yield made


def killed_at(service: Service, points: dict[int, float], *names: str) -> Customer:
    """A search is submitted, extended, and in the end complete, while they die who come to those points."""
    customer = Customer(service, f"killed-{len(list(service.path.glob('*.code')))}")
    arm(service.path, *names)
    customer.submit()
    customer.until_ended(1)
    customer.extend()
    if "paused after" in names:
        customer.edit(verb="pause")
        customer.until("paused")
        customer.edit(verb="resume")
    customer.verify(points)
    assert sorted(fired(service.path)) == sorted(names)
    return customer


@pytest.mark.slow
def test_killed_at_a_point_each(here: Service, points: dict[int, float]) -> None:
    """The API, the runner and the driver."""
    killed_at(here, points, "note after", "goal linked", "claim after", "told before")


@pytest.mark.long
@pytest.mark.parametrize("names", chains(), ids=", ".join)
def test_killed_at_points(here: Service, points: dict[int, float], names: tuple[str, ...]) -> None:
    killed_at(here, points, *names)


@pytest.mark.long
@pytest.mark.parametrize("names", ON_A_SERVER, ids=", ".join)
def test_killed_at_points_with_a_board_on_a_server(
    on_redis: Service, points: dict[int, float], names: tuple[str, ...]
) -> None:
    killed_at(on_redis, points, *names)


@pytest.mark.long
@pytest.mark.parametrize("names", WITH_WORKERS, ids=", ".join)
def test_killed_at_points_of_a_worker(local: Service, points: dict[int, float], names: tuple[str, ...]) -> None:
    customer = killed_at(local, points, *names)
    again = len(customer.evaluations("ended")) - TRIALS - MORE
    assert again == (LANES if "trained before" in names else 0), "only what was not durable is evaluated again"


def killed_at_random(service: Service, points: dict[int, float], seed: int, times: int) -> None:
    """Everything is killed, so many times, at moments that nobody chose."""
    lot, customer = random.Random(seed), Customer(service, f"all-{seed}", seconds=0.25)
    arm(service.path)
    customer.submit()
    for _ in range(times):
        customer.until_ended(min(len(customer.seen) + lot.randrange(4), TRIALS - 2))
        time.sleep(lot.random())
        service.kill_all()
    customer.extend()
    customer.verify(points)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_all_killed_at_once(here: Service, points: dict[int, float], seed: int) -> None:
    killed_at_random(here, points, seed, 3)


@pytest.mark.long
def test_all_killed_at_once_with_workers(local: Service, points: dict[int, float]) -> None:
    killed_at_random(local, points, 2, 3)


@pytest.mark.long
def test_all_killed_at_once_and_the_board_with_all_it_knew(on_redis: Service, points: dict[int, float]) -> None:
    killed_at_random(on_redis, points, 3, 3)


def test_every_point_is_killed_at() -> None:
    """By this file, or by that of the workers; in both kinds of board, where it is a call of one."""
    killed = {name for names in (*chains(), *WITH_WORKERS) for name in names}
    left = of("api", "work", "drive", "worker")
    assert set(left) - killed == {name for name in left if "checkpoint" in name or name == "flushed after"}
    assert set(of("api", "work", call="board:")) <= {name for names in ON_A_SERVER for name in names}
    assert len({(p.role, p.call, p.when, p.about, p.n) for p in POINTS.values()}) == len(POINTS)
