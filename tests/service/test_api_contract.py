"""The contract: OpenAPI describes every route with examples, and what is answered is what it describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from api_cases import SPEC, Api, api_at, run_by_hand
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from trials.records import Ending


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_at(tmp_path_factory.mktemp("contract")) as found:
        spec = {**SPEC, "objective": {"metric": "val_error", "mode": "min"}}
        values = [(Ending.COMPLETE, 0.5), (Ending.ERROR, None), (Ending.COMPLETE, 0.25)]
        run_by_hand(found.store.create("digits-width-3fa2b1", {"name": "x", "spec": spec}), values, end="")
        yield found


def operations(api: Api) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in api.app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_the_contract_is_served_and_asks_for_tokens(api: Api) -> None:
    found = api.as_("read").get("/openapi.json")
    assert found.json() == json.loads(json.dumps(api.app.openapi()))
    assert found.json()["openapi"].startswith("3.1")
    assert found.json()["security"] == [{"token": []}]


def test_every_operation_is_described_with_examples_and_problems(api: Api) -> None:
    for method, path, operation in operations(api):
        where = f"{method} {path}"
        assert operation["summary"], where
        codes = set(operation["responses"])
        if path not in ("/healthz", "/readyz"):
            assert {"401", "403", "421", "500"} <= codes, where
        for status, answer in operation["responses"].items():
            for kind, content in answer.get("content", {}).items():
                shown = "example" in content or content.get("examples") or "binary" in str(content["schema"])
                assert shown, f"{where} {status} {kind}"
                if int(status) >= 400 and path != "/readyz":
                    assert kind == "application/problem+json", f"{where} {status}"
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            assert "example" in content or kind == "application/zip", where


def test_the_examples_of_bodies_are_accepted(api: Api) -> None:
    for method, path, operation in operations(api):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            if kind == "application/json":
                target = path.replace("{search_id}", "digits-width-3fa2b1")
                answer = api.client.request(method.upper(), target, json=content["example"])
                assert answer.status_code in (200, 201, 202), answer.text


def fuzzed(api: Api, examples: int) -> int:
    """Requests made up from the contract, seeded; how many. Raises on a 5xx, or an answer that is not described."""
    headers = {**api.headers("admin"), "Host": "127.0.0.1"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", api.app, headers=headers)
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    count = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/events") or operation.method == "put":  # a stream without end; bytes, not data
            continue

        @hypothesis.settings(max_examples=examples, suppress_health_check=list(hypothesis.HealthCheck), database=None)
        @hypothesis.seed(0)
        @hypothesis.given(case=operation.as_strategy())
        def send(case: Any) -> None:
            nonlocal count
            case.call_and_validate(headers=headers, checks=checks)
            count += 1

        send()
    return count


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_what_is_answered_is_what_is_described(api: Api) -> None:
    assert fuzzed(api, 8) >= 100
