"""The metric of a submitted search that leaves it to its task: known where no data is needed, told by what was measured
where it is; and its best is the best from the first trial on, whoever is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_cases import SPEC, Api, api_at

from service import driver
from service.summary import best_trial, summary

SMALL: dict[str, Any] = {
    **SPEC,
    "budget": {"trials": 3},
    "training": {"epochs": 1},
    "resources": {"workers": 1, "lanes": 3},
}
TABLE = "x,y\n" + "".join(f"{i % 7},{3 * (i % 7) + 1}.5\n" for i in range(60))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_at(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("objective", "metric", "mode"),
    [(None, "val_error", "min"), ({"metric": "val_accuracy"}, "val_accuracy", "max")],
)
def test_the_best_of_a_bundled_task(api: Api, objective: Any, metric: str, mode: str) -> None:
    more = {} if objective is None else {"objective": objective}
    search_id = api.submit(spec={**SMALL, **more})
    assert driver.resume(api.store, search_id, executor="here").state == "complete"
    search = api.store.search(search_id)
    ended = search.outcomes()
    assert len(ended) == 3
    best = (min if mode == "min" else max)(ended, key=lambda outcome: outcome.metrics[metric])
    told = api.client.get(f"/v1/searches/{search_id}/best").json()
    assert (told["metric"], told["mode"], told["value"]) == (metric, mode, best.metrics[metric])
    assert told == {**best_trial(search, api.store), "state": told["state"]}
    (row,) = api.client.get("/v1/searches").json()["items"]
    assert (row["metric"], row["mode"], row["best"]["value"]) == (metric, mode, told["value"])


def test_a_metric_that_only_data_tells_is_told_once_something_was_measured(api: Api, tmp_path: Path) -> None:
    (tmp_path / "line.csv").write_text(TABLE)
    task = {"kind": "table", "path": str(tmp_path / "line.csv"), "target": "y"}
    search_id = api.submit(spec={**SMALL, "task": task})
    (row,) = api.client.get("/v1/searches").json()["items"]
    shown = api.client.get(f"/v1/searches/{search_id}").json()
    assert (row["metric"], row["mode"]) == (shown["metric"], shown["mode"]) == ("auto", "min")
    with contextlib.chdir(tmp_path):
        assert driver.resume(api.store, search_id, executor="here").state == "complete"
    search = api.store.search(search_id)
    best = min(outcome.metrics["val_mse"] for outcome in search.outcomes())
    assert (summary(search)["metric"], best_trial(search)["value"]) == ("val_mse", best)
    (row,) = api.client.get("/v1/searches").json()["items"]
    assert (row["metric"], row["best"]["value"]) == ("val_mse", best)
