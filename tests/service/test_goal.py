"""Changing the goal of a search: what each verb does, what is refused and why, and two editors at once."""

from __future__ import annotations

import threading

import pytest

from search_spaces.faults import Invalid
from service.goal import Edit, change, wanted
from trials.store import Conflict, SearchStore, Store

SPEC = {
    "name": "s",
    "spec": {
        "space": {
            "lr": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
            "kind": {"type": "choice", "options": ["a", "b", "c"]},
            "width.0": {"type": "width", "low": 4, "high": 64, "moved_by": "gradient"},
        },
        "search": {"sampler": {"kind": "tpe"}},
        "budget": {"trials": 16},
        "resources": {"workers": 2},
    },
}


@pytest.fixture
def search(tmp_path) -> SearchStore:
    return Store(tmp_path).create("s", SPEC)


def told(search: SearchStore, **edit) -> list[str]:
    with pytest.raises(Invalid) as caught:
        change(search, Edit.from_dict(edit))
    assert search.goal_version() == 0
    return list(caught.value.faults)


def test_the_first_goal_is_the_specs(search):
    goal = wanted(search)
    assert (goal.version, goal.state, goal.workers, goal.budget, goal.space) == (0, "run", 2, {"trials": 16}, None)


@pytest.mark.parametrize(("verb", "state"), [("pause", "pause"), ("stop", "stop"), ("cancel", "cancel")])
def test_a_verb_and_back(search, verb, state):
    goal = change(search, Edit(verb=verb), by="ada")
    assert (goal.version, goal.state, goal.verb, goal.by) == (1, state, verb, "ada")
    assert change(search, Edit(verb="resume")).state == "run"
    assert wanted(search).version == 2


def test_edits_are_laid_over_one_another(search):
    change(search, Edit(verb="scale", workers=3))
    change(search, Edit(verb="extend", budget={"trials": "+16", "wall_seconds": 60}))
    change(search, Edit(verb="narrow", space={"lr": {"high": 0.1}, "kind": {"options": ["a", "c"]}}))
    change(search, Edit(verb="prioritise", priority=50))
    goal = change(search, Edit(verb="narrow", space={"lr": {"low": 0.05}}))
    assert (goal.workers, goal.budget, goal.priority) == (3, {"trials": 32, "wall_seconds": 60}, 50)
    assert goal.space is not None
    assert goal.space["lr"] == {"type": "float", "low": 0.05, "high": 0.1, "log": True}
    assert goal.space["kind"]["options"] == ["a", "c"]


def test_extending_what_was_stopped_starts_it_but_what_was_paused_stays_so(search):
    change(search, Edit(verb="stop"))
    assert change(search, Edit(verb="extend", budget={"trials": 32})).state == "run"
    change(search, Edit(verb="pause"))
    assert change(search, Edit(verb="extend", budget={"trials": 64})).state == "pause"


def test_an_edit_for_another_version_is_refused(search):
    change(search, Edit(verb="scale", workers=3), if_version=0)
    with pytest.raises(Conflict, match="is at version 1, but the edit was made for 0"):
        change(search, Edit(verb="scale", workers=4), if_version=0)
    assert wanted(search).workers == 3


def test_twenty_editors_at_once_lose_nothing(search):
    def more() -> None:
        change(search, Edit(verb="extend", budget={"trials": "+1"}))

    threads = [threading.Thread(target=more) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wanted(search).budget == {"trials": 36}
    assert wanted(search).version == 20


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"verb": "scael"}, ["goal.verb: unknown verb 'scael'. Did you mean 'scale'?"]),
        ({"verb": "scale"}, ["goal.workers: `scale` needs it, but it is missing"]),
        ({"verb": "scale", "workers": 0}, ["from 1 to 100000, but got 0; `pause` takes all of them away"]),
        ({"verb": "scale", "workers": True}, ["goal.workers: must be a whole number"]),
        ({"verb": "pause", "workers": 3}, ["goal.workers: belongs to `scale`, but the verb is `pause`"]),
        ({"verb": "extend", "budget": {}}, ["goal.budget: must be a mapping such as {trials: 512}"]),
        (
            {"verb": "extend", "budget": {"trials": 4, "epoch": 3, "flops": "+5", "wall_seconds": -1}},
            [
                "can only be raised, but got 4, below 16",
                "Did you mean 'epochs'",
                "the search has that budget",
                "above 0",
            ],
        ),
        ({"verb": "extend", "budget": {"trials": 17.5}}, ["goal.budget.trials: must be a whole number"]),
        (
            {"verb": "narrow", "space": {"lr": {"low": 0.001, "high": 2}, "kid": {}, "width.0": {"high": 8}}},
            ["lr.low: must be at least 0.01", "lr.high: must be at most 1.0", "Did you mean 'kind'", "by a gradient"],
        ),
        ({"verb": "narrow", "space": {"kind": {"options": ["a", "d"]}}}, ["must be some of ['a', 'b', 'c']"]),
        ({"verb": "narrow", "space": {"lr": {"log": False}}}, ["only low, high and options can be narrowed"]),
        ({"verb": "narrow", "space": {"lr": {"low": 0.5, "high": 0.4}}}, ["space.lr: `low <"]),
        ({"verb": "prioritise"}, ["goal.priority: `prioritise` needs it, but it is missing"]),
        ({"verb": "prioritise", "priority": 0}, ["from 1 to 100, the greater the sooner, but got 0."]),
        ({"verb": "prioritise", "priority": True}, ["goal.priority: must be a whole number"]),
        ({"verb": "pause", "priority": 9}, ["goal.priority: belongs to `prioritise`, but the verb is `pause`"]),
        ({"verb": "scale", "worker": 3}, ["goal: unknown key 'worker'. Did you mean 'workers'?"]),
    ],
)
def test_what_is_wrong_is_said_all_at_once(search, edit, words):
    found = told(search, **edit)
    assert len(found) == len(words), found
    for text, fault in zip(words, found, strict=True):
        assert text in fault


def test_a_sampler_that_rebuilds_its_steps_cannot_be_narrowed(tmp_path):
    spec = {**SPEC["spec"], "search": {"sampler": "cmaes"}}
    search = Store(tmp_path).create("s", {"name": "s", "spec": spec})
    assert "cmaes rebuilds its steps" in told(search, verb="narrow", space={"lr": {"high": 0.1}})[0]


@pytest.mark.parametrize("verb", ["pause", "stop", "cancel", "scale", "prioritise"])
def test_a_complete_search_has_nothing_left_to_pause_until_it_is_extended(search, verb):
    log = search.log_writer(1)
    log.append("state", {"state": "complete", "why": None, "goal": 0})
    edit = {"verb": verb, **({"scale": {"workers": 3}, "prioritise": {"priority": 3}}.get(verb, {}))}
    assert f"the search is complete, so there is nothing to {verb}; `extend`" in told(search, **edit)[0]
    assert search.state() == "complete"
    change(search, Edit(verb="extend", budget={"trials": 32}))
    assert search.state() == "interrupted"
    change(search, Edit.from_dict(edit))
    log.append("state", {"state": "complete", "why": None, "goal": 2})
    assert search.state() == "complete"


def test_a_failed_search_is_resumed_and_nothing_else(search):
    search.log_writer(1).append("state", {"state": "failed", "why": "x", "goal": 0})
    assert "the search is failed, so there is nothing to scale; `resume`" in told(search, verb="scale", workers=3)[0]
    assert search.state() == "failed"
    change(search, Edit(verb="resume"))
    assert search.state() == "interrupted"
