"""What OpenAPI shows of bodies and answers: a schema and an example each."""

from __future__ import annotations

from typing import Any

ID = "digits-width-3fa2b1"
SPEC: dict[str, Any] = {
    "name": "digits-width",
    "task": "uci/digits",
    "network": {"kind": "mlp", "layers": 2},
    "space": {"width.0": {"type": "width", "low": 4, "high": 128}, "width.1": {"type": "width", "low": 4, "high": 128}},
    "budget": {"trials": 256},
}
REQUEST: dict[str, Any] = {"spec": SPEC, "priority": 10}

_TEXT, _WHOLE, _REAL = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_MAYBE_TEXT = {"type": ["string", "null"]}
_COUNTS = {"type": "object", "additionalProperties": _WHOLE}
_ANY_NUMBER = {"type": ["number", "string", "null"], "description": 'not finite: "NaN", "Infinity", "-Infinity"'}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


ROW = _object(
    {
        "search_id": _TEXT,
        "name": _TEXT,
        "state": _TEXT,
        "why": _MAYBE_TEXT,
        "owner": _TEXT,
        "priority": _WHOLE,
        "workers": _WHOLE,
        "goal_version": _WHOLE,
        "created": _REAL,
        "metric": _MAYBE_TEXT,
        "mode": _MAYBE_TEXT,
        "asked": _WHOLE,
        "trials": _COUNTS,
        "best": {"type": ["object", "null"]},
    }
)
GOAL = _object(
    {
        "version": _WHOLE,
        "state": {"enum": ["run", "pause", "stop", "cancel"]},
        "workers": _WHOLE,
        "budget": {"type": "object"},
        "space": {"type": ["object", "null"]},
        "priority": {"type": ["integer", "null"]},
        "verb": _TEXT,
        "by": _TEXT,
        "at": _REAL,
    },
    search_id=_TEXT,
    note=_TEXT,
)
_GOAL = {
    "version": 1,
    "state": "run",
    "workers": 4,
    "budget": {"trials": 256},
    "space": None,
    "priority": None,
    "verb": "scale",
}
GOAL_EXAMPLE = {"search_id": ID, **_GOAL, "by": "ada", "at": 1764122400.0}
_ROW = {
    "search_id": ID,
    "name": "digits-width",
    "state": "running",
    "why": None,
    "owner": "ada",
    "priority": 10,
    "workers": 2,
    "goal_version": 0,
    "created": 1764122400.0,
    "metric": "val_error",
    "mode": "min",
    "asked": 32,
    "trials": {"complete": 24, "nan": 1},
    "best": {"trial": 7, "value": 0.0312},
}


def answer(description: str, schema: dict[str, Any], example: Any, *, headers: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON answer as OpenAPI has it."""
    found: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": schema, "example": example}},
    }
    if headers:
        found["headers"] = {name: {"schema": _TEXT} for name in headers}
    return found


def page(description: str, item: dict[str, Any], example: Any) -> dict[str, Any]:
    """A page of a list."""
    schema = _object({"items": {"type": "array", "items": item}, "next": _MAYBE_TEXT})
    return answer(description, schema, {"items": [example], "next": None})


def table(description: str, example: Any) -> dict[str, Any]:
    """A table: a page of it as JSON, or the whole as CSV or Arrow."""
    found = page(description, {"type": "object"}, example)
    found["content"] |= {
        "text/csv": {"schema": _TEXT, "example": ",".join(example) + "\n"},
        "application/vnd.apache.arrow.stream": {"schema": {"type": "string", "format": "binary"}},
    }
    return found


def body(schema: dict[str, Any], example: Any, *, yaml: bool = True) -> dict[str, Any]:
    """A body as JSON or YAML, for `openapi_extra`."""
    kinds = ["application/json", *(["application/yaml"] if yaml else [])]
    content = {kind: {"schema": schema, "example": example} for kind in kinds}
    return {"requestBody": {"required": True, "content": content}}


SUBMIT = body(
    {
        **_object(
            {"spec": {"type": "object", "description": "the declaration of a search, as `continua run` reads it"}},
            priority={"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
            code={
                "type": ["string", "null"],
                "pattern": "^[0-9a-f]{64}$",
                "description": "sha256 of a zip under /v1/code",
            },
            requirements={"type": ["array", "null"], "items": _TEXT},
            name={"type": ["string", "null"], "minLength": 1},
        ),
        "additionalProperties": False,
    },
    REQUEST,
)
SUBMITTED = answer(
    "The search, durable. The same request again (by its Idempotency-Key) gives the same answer.",
    _object(
        {"search_id": _TEXT, "name": _TEXT, "state": _TEXT, "owner": _TEXT, "new": {"type": "boolean"}}, note=_TEXT
    ),
    {"search_id": ID, "name": "digits-width", "state": "queued", "owner": "ada", "new": True},
    headers=("Location", "ETag"),
)
SEARCHES = page("A page of searches, the newest first.", ROW, _ROW)
SEARCH = answer(
    "All that is known of a search without its reports.",
    _object({"search_id": _TEXT, "name": _TEXT, "state": _TEXT, "asked": _WHOLE, "trials": _COUNTS, "spent": {}}),
    {"search_id": ID, "name": "digits-width", "state": "running", "asked": 32, "trials": {"complete": 24}, "spent": {}},
    headers=("ETag",),
)
_EDIT = {"verb": {"enum": ["pause", "resume", "stop", "cancel", "scale", "extend", "narrow", "prioritise"]}}
EDIT = body(
    {
        **_object(
            _EDIT,
            workers={"type": ["integer", "null"], "minimum": 1},
            budget={"type": ["object", "null"]},
            space={"type": ["object", "null"]},
            priority={"type": ["integer", "null"], "minimum": 1, "maximum": 100},
        ),
        "additionalProperties": False,
    },
    {"verb": "scale", "workers": 4},
)
GOAL_ANSWER = answer("The goal as it stands.", GOAL, GOAL_EXAMPLE, headers=("ETag",))
EDITED = answer("The goal's next version, durable; it is acted on soon.", GOAL, GOAL_EXAMPLE, headers=("ETag",))
TRIALS = table("Trials, one row each.", {"search_id": ID, "trial_id": f"{ID}-t000007", "number": 7, "value": 0.0312})
REPORTS = table("Reports, one row each.", {"search_id": ID, "trial_id": f"{ID}-t000007", "step": 40, "val_error": 0.05})
BEST = answer(
    "The best trial.",
    _object({"search_id": _TEXT, "trial": _WHOLE, "value": _ANY_NUMBER, "point": {"type": "object"}}),
    {"search_id": ID, "trial": 7, "value": 0.0312, "point": {"width.0": 61.2}},
)
TRIAL = answer(
    "One trial with all its attempts.",
    _object({"search_id": _TEXT, "number": _WHOLE, "ending": _TEXT, "attempts": {"type": "array"}}),
    {"search_id": ID, "number": 7, "ending": "complete", "attempts": []},
)
TRIAL_LOG = {
    "description": "All that is known of a trial, as text.",
    "content": {"text/plain": {"schema": _TEXT, "example": "trial 7 of digits-width-3fa2b1: complete\n"}},
}
EVENTS = {
    "description": "Server-sent events.",
    "content": {
        "text/event-stream": {"schema": _TEXT, "example": 'event: state\ndata: {"state": "running"}\nid: 1-0\n\n'}
    },
}
QUERY = body({**_object({"sql": {"type": "string"}}), "additionalProperties": False}, {"sql": "SELECT 1"})
ANSWER = {
    **table("The answer's rows. `cut` says what it was cut at (rows, size), and is null where it is whole.", {"1": 1}),
}
ANSWER["content"]["application/json"] = {
    "schema": _object({"items": {"type": "array", "items": {"type": "object"}}, "cut": _MAYBE_TEXT}),
    "example": {"items": [{"1": 1}], "cut": None},
}
CODE = answer(
    "The code is kept.", _object({"sha256": _TEXT, "new": {"type": "boolean"}}), {"sha256": "0" * 64, "new": True}
)
HEALTH = answer("The server runs.", _object({"status": _TEXT}), {"status": "ok"})
_CHECKS = _object(
    {"status": {"enum": ["ready", "degraded"]}, "checks": {"type": "object"}, "warnings": {"type": "array"}}
)
READY = answer("All works.", _CHECKS, {"status": "ready", "checks": {"board": "ok", "store": "ok"}, "warnings": []})
DEGRADED = answer(
    "Something does not work.",
    _CHECKS,
    {"status": "degraded", "checks": {"board": "does not answer", "store": "ok"}, "warnings": []},
)
METRICS = {
    "description": "Prometheus' own format.",
    "content": {"text/plain": {"schema": _TEXT, "example": "continua_queue_length 2.0\n"}},
}
CONTRACT = answer("OpenAPI 3.1.", {"type": "object"}, {"openapi": "3.1.0"})
