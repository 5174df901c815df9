"""Searches over HTTP: submitted once, listed in pages, shown whole, and told apart by the beginning of their ids."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from api_cases import OBJECTIVE, SPEC, Api, api_at, run_by_hand

from trials.records import Ending
from trials.store import Store


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_at(tmp_path) as found:
        yield found


def code_of(answer: object) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]  # type: ignore[attr-defined]


# -- submitting --------------------------------------------------------------------------------------------------------


def test_a_search_is_made_and_found_where_it_is_said_to_be(api: Api) -> None:
    answer = api.as_("ada").post("/v1/searches", json={"spec": SPEC, "priority": 20})
    assert answer.status_code == 201
    said = answer.json()
    assert (said["name"], said["state"], said["owner"], said["new"]) == ("digits", "queued", "ada", True)
    found = api.as_("read").get(answer.headers["location"])
    assert found.headers["etag"] == answer.headers["etag"] == '"0"'
    assert found.json()["search_id"] == answer.json()["search_id"]
    assert (found.json()["priority"], found.json()["submitter"]) == (20, "ada")
    assert found.json()["job"]["status"] == found.json()["state"] == "queued"
    assert found.json()["wanted"]["workers"] == 2


def test_yaml_is_read_as_strictly_as_a_file(api: Api) -> None:
    headers = {"Content-Type": "application/yaml; charset=utf-8"}
    text = yaml.safe_dump({"spec": SPEC, "name": "from-yaml"})
    answer = api.client.post("/v1/searches", content=text, headers=headers)
    assert (answer.status_code, answer.json()["name"]) == (201, "from-yaml")


def test_all_faults_come_back_at_once(api: Api) -> None:
    answer = api.client.post("/v1/searches", json={"spec": {"task": "x", "budget": {}}, "priority": 1000})
    assert code_of(answer) == (422, "invalid")
    faults = answer.json()["faults"]
    assert {fault.split(":")[0].split(".")[0] for fault in faults} >= {"priority", "space", "budget"}
    unknown = api.client.post("/v1/searches", json={"spce": SPEC})
    assert "Did you mean 'spec'" in unknown.text
    assert "continua compare" in api.client.post("/v1/searches", json={"spec": {**SPEC, "arms": {}}}).text
    assert "/v1/code" in api.client.post("/v1/searches", json={"spec": OBJECTIVE}).text
    for body in (3, [], "x", None, {}):
        assert code_of(api.client.post("/v1/searches", json=body)) == (422, "invalid")
    assert api.store.searches() == []


def test_a_key_makes_the_same_answer(api: Api) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = api.as_("ada").post("/v1/searches", json={"spec": SPEC}, headers=headers)
    again = api.as_("ada").post("/v1/searches", json={"spec": SPEC}, headers=headers)
    assert again.status_code == first.status_code == 201
    assert again.headers["location"] == first.headers["location"]
    assert (first.json()["new"], again.json()["new"]) == (True, False)
    other = api.as_("ada").post("/v1/searches", json={"spec": SPEC, "priority": 11}, headers=headers)
    assert code_of(other) == (422, "key-reused")
    assert api.as_("bob").post("/v1/searches", json={"spec": SPEC}, headers=headers).json()["new"]
    assert len(api.store.searches()) == 2


def test_twenty_posts_at_once_make_one_search(api: Api) -> None:
    found = []

    def post() -> None:
        answer = api.as_("ada").post("/v1/searches", json={"spec": SPEC}, headers={"Idempotency-Key": "k"})
        found.append((answer.status_code, answer.json()["search_id"], answer.json()["new"]))

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({search_id for _, search_id, _ in found}) == 1
    assert {status for status, _, _ in found} == {201}
    assert sum(new for _, _, new in found) == 1
    assert len(api.store.searches()) == len(api.board.list()) == 1


def test_a_board_that_does_not_answer_refuses_nothing(api: Api) -> None:
    api.board.plugged = False
    answer = api.client.post("/v1/searches", json={"spec": SPEC})
    assert answer.status_code == 201
    assert "safe in the store" in answer.json()["note"]
    search_id = answer.json()["search_id"]
    assert api.client.get(f"/v1/searches/{search_id}").json()["state"] == "queued"
    assert [row["search_id"] for row in api.client.get("/v1/searches").json()["items"]] == [search_id]
    api.board.plugged = True
    assert api.app.state.desk.owing
    assert api.app.state.desk.restore() == 1
    assert api.board.get(search_id).status == "queued"


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EIO, 503)])
def test_what_cannot_be_kept_is_not_acknowledged(
    api: Api, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    kept = api.submit()

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        answer = api.client.post("/v1/searches", json={"spec": SPEC})
        assert code_of(answer) == (status, "disk-full" if status == 507 else "store-failed")
        assert api.client.get(f"/v1/searches/{kept}").status_code == 200
    assert api.store.searches() == [kept]
    api.submit()


def test_a_disk_that_is_full_refuses_and_recovers(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        with api_at(tmp_path / "rest") as api:
            (place / "store").mkdir()
            api.app.state.desk.store.root = api.store.root = place / "store"
            api.store._make_writable()
            kept = api.submit()
            filler = place / "filler"
            filler.write_bytes(b"x" * (os.statvfs(place).f_bavail * os.statvfs(place).f_frsize))
            for _ in range(3):
                assert code_of(api.client.post("/v1/searches", json={"spec": SPEC})) == (507, "disk-full")
                assert code_of(api.client.patch(f"/v1/searches/{kept}/goal", json={"verb": "pause"})) == (
                    507,
                    "disk-full",
                )
            assert api.client.get("/readyz").status_code == 503
            assert api.client.get(f"/v1/searches/{kept}").json()["state"] == "queued"
            filler.unlink()
            assert api.client.get("/readyz").status_code == 200
            assert api.submit() in api.store.searches()
    finally:
        subprocess.run(["umount", str(place)], check=True)


# -- listing -----------------------------------------------------------------------------------------------------------


def made_by_hand(store: Store, name: str, **document: object) -> str:
    spec = {**SPEC, "objective": {"metric": "val_error", "mode": "min"}}
    search = store.create(name, {"name": name, "labels": {}, "spec": spec, **document})
    return search.id


def test_pages_have_every_search_once_the_newest_first(api: Api) -> None:
    ids = [api.submit(name=f"s{i}") for i in range(7)]
    ids.append(made_by_hand(api.store, "by-hand"))
    for i, search_id in enumerate(ids):  # the clock of a file system is coarse
        os.utime(api.store.root / "searches" / search_id / "spec.json", ns=(0, (i + 1) * 10**9))
    assert api.client.get("/v1/searches", params={"limit": 3}).status_code == 200
    api.app.state.desk.summaries._facts.clear()
    seen, cursor = [], None
    for _ in range(4):
        page = api.client.get("/v1/searches", params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
        seen += [row["search_id"] for row in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ids[::-1]


def test_lists_are_filtered(api: Api) -> None:
    one, two = api.submit("ada", name="First"), api.submit("bob", name="second")
    hand = made_by_hand(api.store, "third")
    run_by_hand(api.store.search(hand), [(Ending.COMPLETE, 0.5)])
    api.client.patch(f"/v1/searches/{two}/goal", json={"verb": "pause"})

    def ids(**params: str) -> set[str]:
        return {row["search_id"] for row in api.client.get("/v1/searches", params=params).json()["items"]}

    assert ids() == {one, two, hand}
    assert ids(owner="ada") == {one}
    assert ids(name="fir") == {one}
    assert ids(state="paused") == {two}
    assert ids(state="complete") == {hand}
    assert ids(state="queued,complete") == {one, hand}
    assert ids(state="running") == set()
    refused = api.client.get("/v1/searches", params={"state": "queued,runing"})
    assert refused.status_code == 422
    assert "state: unknown state 'runing'. Did you mean 'running'?" in refused.text


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": "x"},
        {"cursor": "x"},
        {"cursor": "WzFd"},
        {"cursor": "é"},
        {"cursor": "W10"},
    ],
)
def test_wrong_parameters_are_problems(api: Api, params: dict[str, object]) -> None:
    assert code_of(api.client.get("/v1/searches", params=params)) == (422, "invalid")


def test_a_row_says_how_a_search_stands(api: Api) -> None:
    hand = made_by_hand(api.store, "done")
    values = [(Ending.COMPLETE, 0.5), (Ending.NAN, None), (Ending.COMPLETE, 0.25), (Ending.COMPLETE, float("nan"))]
    run_by_hand(api.store.search(hand), values)
    (row,) = api.client.get("/v1/searches").json()["items"]
    assert (row["asked"], row["trials"], row["best"]) == (4, {"complete": 3, "nan": 1}, {"trial": 2, "value": 0.25})
    assert (row["state"], row["owner"], row["metric"]) == ("complete", "", "val_error")


def test_a_list_notices_what_changes(api: Api) -> None:
    search_id = api.submit()
    search = api.store.search(search_id)

    def asked() -> int:
        return int(api.client.get("/v1/searches").json()["items"][0]["asked"])

    assert asked() == 0
    for epoch in (1, 2, 3):
        run_by_hand(search, [(Ending.COMPLETE, 0.5)] * 2, epoch=epoch, end="")
        assert asked() == 2 * epoch


def test_a_search_that_is_driven_by_hand_now_runs(api: Api) -> None:
    hand = made_by_hand(api.store, "now")
    with api.store.search(hand).lease():
        assert api.client.get(f"/v1/searches/{hand}").json()["state"] == "running"
    assert api.client.get(f"/v1/searches/{hand}").json()["state"] == "interrupted"


# -- one ---------------------------------------------------------------------------------------------------------------


def test_the_beginning_of_an_id_will_do(api: Api) -> None:
    for name in ("alpha-1", "alpha-2", "beta-1"):
        made_by_hand(api.store, name)
    assert api.client.get("/v1/searches/be").json()["search_id"] == "beta-1"
    assert api.client.get("/v1/searches/alpha-1").json()["search_id"] == "alpha-1"
    assert code_of(api.client.get("/v1/searches/alpha")) == (404, "ambiguous-id")
    missing = api.client.get("/v1/searches/gamma")
    assert code_of(missing) == (404, "not-found")


@pytest.mark.parametrize("text", ["..", "%2e%2e", "..%2f..%2fetc", "a%00b", "%ff", "x" * 128, "~", ".hidden"])
def test_an_id_is_never_a_path(api: Api, text: str) -> None:
    assert api.client.get(f"/v1/searches/{text}/goal").status_code in (404, 422)


def test_numbers_that_json_has_not_are_text(api: Api) -> None:
    hand = made_by_hand(api.store, "odd")
    run_by_hand(api.store.search(hand), [(Ending.COMPLETE, float("inf")), (Ending.COMPLETE, 0.5)])
    for path in ("", "/trials", "/reports", "/trials/0", "/best"):
        answer = api.client.get(f"/v1/searches/{hand}{path}")
        assert answer.status_code == 200
        json.loads(answer.text, parse_constant=pytest.fail)
    assert '"val_error": "Infinity"' in api.client.get(f"/v1/searches/{hand}/trials/0").text


def test_a_search_whose_spec_is_damaged_is_listed_and_told(api: Api) -> None:
    search_id = api.submit()
    (api.store.root / "searches" / search_id / "spec.json").write_bytes(b"\0\0")
    api.app.state.desk.summaries._facts.clear()
    assert [row["search_id"] for row in api.client.get("/v1/searches").json()["items"]] == [search_id]
    answer = api.client.get(f"/v1/searches/{search_id}/goal")
    assert code_of(answer) == (500, "damaged")
    assert str(api.path) not in answer.text
