"""Goals over HTTP: durable before they are answered, made for the version that was looked at, of one's own searches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_cases import SPEC, Api, api_at

from service.board.rebuild import posted
from service.goal import wanted
from trials.store import NotFound


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_at(tmp_path) as found:
        yield found


@pytest.fixture
def goal(api: Api) -> str:
    return f"/v1/searches/{api.submit('ada')}/goal"


def test_an_edit_is_stored_and_the_board_is_told(api: Api, goal: str) -> None:
    ada, search_id = api.as_("ada"), goal.split("/")[3]
    answer = ada.patch(goal, json={"verb": "scale", "workers": 5})
    assert (answer.status_code, answer.headers["etag"]) == (202, '"1"')
    assert (answer.json()["workers"], answer.json()["by"], answer.json()["search_id"]) == (5, "ada", search_id)
    assert wanted(api.store.search(search_id)).workers == 5
    assert (api.board.get(search_id).goal, api.board.get(search_id).workers) == (1, 5)
    assert ada.patch(goal, json={"verb": "extend", "budget": {"trials": "+64"}}).json()["budget"] == {"trials": 80}
    assert ada.patch(goal, json={"verb": "narrow", "space": {"lr": {"high": 0.5}}}).json()["space"]["lr"]["high"] == 0.5
    assert ada.patch(goal, json={"verb": "prioritise", "priority": 70}).json()["priority"] == 70
    assert api.board.get(search_id).priority == 70
    assert posted(api.store.search(search_id)).priority == 70, "a board that is made anew knows it too"
    api.board.plugged = False
    assert api.client.get(f"/v1/searches/{search_id}").json()["priority"] == 70, "and so does the store without one"
    api.board.plugged = True
    assert ada.patch(goal, json={"verb": "pause"}).json()["state"] == "pause"
    assert api.client.get(f"/v1/searches/{search_id}").json()["state"] == "paused"
    assert ada.patch(goal, json={"verb": "resume"}).json()["state"] == "run"
    found = api.as_("read").get(goal)
    assert (found.json()["version"], found.headers["etag"]) == (6, '"6"')


def test_an_edit_for_another_version_changes_nothing(api: Api, goal: str) -> None:
    ada = api.as_("ada")
    assert ada.patch(goal, json={"verb": "pause"}, headers={"If-Match": '"0"'}).status_code == 202
    for tag in ('"0"', '"2"', "x", 'W/"1"', "1", ""):
        answer = ada.patch(goal, json={"verb": "resume"}, headers={"If-Match": tag})
        assert (answer.status_code, answer.json()["code"]) == (412, "goal-changed"), tag
    assert ada.get(goal).json()["version"] == 1
    for tag in ('"1"', "*"):
        assert ada.patch(goal, json={"verb": "resume"}, headers={"If-Match": tag}).status_code == 202


def test_of_many_edits_for_one_version_one_wins(api: Api, goal: str) -> None:
    found = []

    def edit(i: int) -> None:
        answer = api.client.patch(goal, json={"verb": "scale", "workers": i}, headers={"If-Match": '"0"'})
        found.append(answer.status_code)

    threads = [threading.Thread(target=edit, args=(i,)) for i in range(1, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [202] + [412] * 9
    assert api.client.get(goal).json()["version"] == 1


def test_a_search_is_its_owners(api: Api, goal: str) -> None:
    answer = api.as_("bob").patch(goal, json={"verb": "cancel"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert api.as_("read").patch(goal, json={"verb": "cancel"}).status_code == 403
    assert api.as_("read").get(goal).json()["version"] == 0
    assert api.client.patch(goal, json={"verb": "cancel"}).status_code == 202
    hand = api.store.create("by-hand", {"name": "x", "spec": SPEC})
    assert api.as_("ada").patch(f"/v1/searches/{hand.id}/goal", json={"verb": "pause"}).status_code == 403
    assert api.client.patch(f"/v1/searches/{hand.id}/goal", json={"verb": "pause"}).status_code == 202
    with pytest.raises(NotFound):  # pausing what somebody runs by hand gives it to no runner
        api.board.get(hand.id)
    assert api.client.patch(f"/v1/searches/{hand.id}/goal", json={"verb": "resume"}).status_code == 202
    assert (api.board.get(hand.id).goal, api.board.get(hand.id).claimable) == (2, True)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        ({"verb": "puase"}, "Did you mean 'pause'"),
        ({"verb": "scale"}, "goal.workers"),
        ({"verb": "scale", "workers": 0}, "goal.workers"),
        ({"verb": "extend", "budget": {"trials": 1}}, "can only be raised"),
        ({"verb": "narrow", "space": {"lr": {"high": 9}}}, "at most"),
        ({"verb": "pause", "wrokers": 3}, "Did you mean 'workers'"),
        ([], "must be a mapping"),
        (None, "must be a mapping"),
    ],
)
def test_an_edit_that_breaks_rules_changes_nothing(api: Api, goal: str, edit: object, part: str) -> None:
    answer = api.client.patch(goal, json=edit)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert part in answer.json()["detail"]
    assert api.client.get(goal).json()["version"] == 0


def test_without_its_board_an_edit_holds_all_the_same(api: Api, goal: str) -> None:
    api.board.plugged = False
    answer = api.client.patch(goal, json={"verb": "pause"})
    assert answer.status_code == 202
    assert "safe in the store" in answer.json()["note"]
    assert api.client.get(goal).json()["state"] == "pause"
    api.board.plugged = True
    assert api.app.state.desk.restore() == 1
    assert api.board.get(goal.split("/")[3]).status == "paused"


def test_no_goal_where_there_is_no_search(api: Api) -> None:
    assert api.client.get("/v1/searches/none/goal").status_code == 404
    assert api.client.patch("/v1/searches/none/goal", json={"verb": "pause"}).status_code == 404
