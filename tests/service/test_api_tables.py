"""Tables over HTTP: pages that join to the whole, Arrow and CSV, one trial, and SQL."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator

import pyarrow as pa
import pytest
from api_cases import SPEC, Api, api_at, run_by_hand

from service.sandbox import Limits
from trials.records import Ending

ARROW = "application/vnd.apache.arrow.stream"
VALUES = [
    (Ending.COMPLETE, 0.5),
    (Ending.ERROR, None),
    (Ending.COMPLETE, 0.25),
    (Ending.NAN, None),
    (Ending.COMPLETE, 0.75),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_at(tmp_path_factory.mktemp("tables"), Limits(rows=50)) as found:
        spec = {**SPEC, "objective": {"metric": "val_error", "mode": "min"}}
        run_by_hand(found.store.create("done-1", {"name": "done", "spec": spec}), VALUES)
        found.store.create("empty-1", {"name": "empty", "spec": spec})
        yield found


def pages(api: Api, path: str, **params: object) -> list[dict[str, object]]:
    found, cursor = [], None
    while True:
        page = api.client.get(path, params={**params, **({"cursor": cursor} if cursor else {})}).json()
        found += page["items"]
        cursor = page["next"]
        if cursor is None:
            return found
        assert len(page["items"]) == params["limit"]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("name", ["trials", "reports"])
def test_pages_join_to_the_whole(api: Api, name: str, limit: int) -> None:
    path = f"/v1/searches/done-1/{name}"
    whole = pa.ipc.open_stream(api.client.get(path, headers={"Accept": ARROW}).content).read_all()
    found = pages(api, path, limit=limit)
    assert found == whole.to_pylist()
    assert len(found) == {"trials": 5, "reports": 10}[name]
    text = api.client.get(path, headers={"Accept": "text/csv"})
    assert text.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(text.text)))
    assert [line["trial_id"] for line in lines] == [row["trial_id"] for row in found]


def test_tables_are_filtered(api: Api) -> None:
    def numbers(**params: object) -> list[int]:
        return [row["number"] for row in api.client.get("/v1/searches/done/trials", params=params).json()["items"]]

    assert numbers() == [0, 1, 2, 3, 4]
    assert numbers(ending="complete") == [0, 2, 4]
    assert numbers(ending="error,nan") == [1, 3]
    assert numbers(trial=2) == [2]
    assert numbers(trial=9) == []
    reports = api.client.get("/v1/searches/done/reports", params={"trial": 2}).json()["items"]
    assert [(row["trial_id"], row["step"], row["val_error"]) for row in reports] == [
        ("done-1-t000002", 1, 1.0),
        ("done-1-t000002", 2, 0.5),
    ]


def test_forms_are_chosen_by_accept(api: Api) -> None:
    path = "/v1/searches/done/trials"
    for accept, kind in (
        ("*/*", "application/json"),
        (f"{ARROW};q=1, */*", ARROW),
        ("text/html, text/csv", "text/csv"),
        ("", "application/json"),
    ):
        assert api.client.get(path, headers={"Accept": accept}).headers["content-type"].split(";")[0] == kind
    refused = api.client.get(path, headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not-acceptable")


def test_a_search_without_trials_has_empty_tables(api: Api) -> None:
    for name in ("trials", "reports"):
        assert api.client.get(f"/v1/searches/empty/{name}").json() == {"items": [], "next": None}
        table = pa.ipc.open_stream(api.client.get(f"/v1/searches/empty/{name}", headers={"Accept": ARROW}).content)
        assert table.read_all().num_rows == 0
    assert api.client.get("/v1/searches/empty/best").status_code == 404


def test_the_best_is_the_best(api: Api) -> None:
    best = api.client.get("/v1/searches/done/best").json()
    assert (best["trial"], best["value"], best["point"]["width.0"], best["rounded"]["width.0"]) == (2, 0.25, 10.5, 10)


def test_one_trial_has_its_attempts_and_reports(api: Api) -> None:
    trial = api.client.get("/v1/searches/done/trials/1").json()
    assert (trial["ending"], trial["asked"]["width.0"], trial["value"]) == ("error", 9.0, None)
    assert [(a["attempt"], a["ending"], a["error"]) for a in trial["attempts"]] == [
        (0, "error", "Traceback\nValueError: no")
    ]
    assert [(report["step"], report["val_error"]) for report in trial["reports"]] == [(1, 1.0), (2, 0.5)]
    text = api.client.get("/v1/searches/done/trials/1/log")
    assert text.headers["content-type"].startswith("text/plain")
    for part in ("trial 1 of done-1: error", '"width.0": 9.0', "ValueError: no", '"step": 2', "on w-1"):
        assert part in text.text
    assert api.client.get("/v1/searches/done/trials/9").status_code == 404
    assert api.client.get("/v1/searches/done/trials/x").status_code == 422
    assert api.client.get("/v1/searches/done/trials/9/log").status_code == 404


# -- SQL ---------------------------------------------------------------------------------------------------------------


def test_sql_is_answered_in_every_form(api: Api) -> None:
    sql = {"sql": "SELECT number, value FROM trials WHERE ending = 'complete' ORDER BY number"}
    answer = api.client.post("/v1/query", json=sql)
    rows = [{"number": 0, "value": 0.5}, {"number": 2, "value": 0.25}, {"number": 4, "value": 0.75}]
    assert answer.json() == {"items": rows, "cut": None}
    arrow = api.client.post("/v1/query", json=sql, headers={"Accept": ARROW})
    assert pa.ipc.open_stream(arrow.content).read_all().to_pylist() == rows
    text = api.client.post("/v1/query", json=sql, headers={"Accept": "text/csv"})
    assert text.text == "number,value\n0,0.5\n2,0.25\n4,0.75\n"


def test_a_long_answer_says_that_it_is_cut(api: Api) -> None:
    sql = {"sql": "SELECT unnest(generate_series(1, 1000)) AS n"}
    answer = api.client.post("/v1/query", json=sql).json()
    assert ([row["n"] for row in answer["items"]], answer["cut"]) == (list(range(1, 51)), "rows")
    assert api.client.post("/v1/query", json=sql, headers={"Accept": ARROW}).headers["continua-cut"] == "rows"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"sql": 3},
        {"sql": "SELECT 1", "x": 1},
        [],
        {"sql": "DROP TABLE trials"},
        {"sql": ""},
        {"sql": "SELECT getenv('HOME')"},
        {"sql": "SELECT 1" + " " * 200_000},
    ],
)
def test_other_questions_are_problems(api: Api, body: object) -> None:
    answer = api.client.post("/v1/query", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_two_columns_of_one_name_are_both_answered(api: Api) -> None:
    answer = api.client.post("/v1/query", json={"sql": "SELECT 1 AS a, 2 AS a, 'NaN'::DOUBLE AS b"})
    assert answer.json()["items"] == [{"a": 1, "a_1": 2, "b": "NaN"}]


# -- code --------------------------------------------------------------------------------------------------------------


def zipped(**files: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return sink.getvalue()


def test_code_is_kept_by_its_digest_and_not_given_out(api: Api) -> None:
    payload = zipped(objectives__py="def sphere(trial): return 0.0")
    sha = hashlib.sha256(payload).hexdigest()
    ada = api.as_("ada")
    assert ada.head(f"/v1/code/{sha}").status_code == 404
    assert ada.put(f"/v1/code/{sha}", content=payload).json() == {"sha256": sha, "new": True}
    assert ada.put(f"/v1/code/{sha}", content=payload).json() == {"sha256": sha, "new": False}
    assert (api.store.root / "code" / f"{sha}.zip").read_bytes() == payload
    found = ada.head(f"/v1/code/{sha}")
    assert (found.status_code, found.content) == (200, b"")
    assert ada.get(f"/v1/code/{sha}").json() == {"sha256": sha, "new": False}
    for method in ("GET", "HEAD", "PUT"):
        assert api.as_("read").request(method, f"/v1/code/{sha}").status_code == 403
    spec = {
        "name": "mine",
        "task": "objectives:sphere",
        "space": {"x": {"type": "float", "low": 0, "high": 1}},
        "budget": {"trials": 4},
    }
    assert ada.post("/v1/searches", json={"spec": spec, "code": sha}).status_code == 201


def test_code_that_is_not_what_it_says_is_refused(api: Api) -> None:
    payload = zipped(a__py="1")
    assert "theirs is" in api.client.put(f"/v1/code/{'0' * 64}", content=payload).json()["detail"]
    for bad in (b"", b"no zip", zipped(**{"../x": "1"}), zipped(service__py="1")):
        sha = hashlib.sha256(bad).hexdigest()
        answer = api.client.put(f"/v1/code/{sha}", content=bad)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        assert not (api.store.root / "code" / f"{sha}.zip").exists()
    for name in ("x", "..", "A" * 64, "0" * 63):
        assert api.client.put(f"/v1/code/{name}", content=payload).status_code in (404, 422)
