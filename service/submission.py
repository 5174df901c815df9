"""Submitting: from plain data to a durable search that stands on the board, without running anything of the user's.

    >>> job, new = submit(store, board, data, owner="ada", key="5f1c...")
    >>> job.id, new
    ('digits-3fa2b1', True)

Only the declaration is judged here, all its faults at once: no task is loaded and no code imported, so neither torch
nor the data need be there. The search is durable before the board hears of it, and a board that fails, however it
does, does not undo it: the job comes back with `seq` 0, and whoever rebuilds the board from the store posts it.

A request with a key makes one search however often it is sent: its first sending leaves a note in the store of the id
and of what was asked.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from search_spaces.faults import Invalid, unknown
from search_spaces.networks import Own
from service.board.contract import PRIORITY, Board, Job, Unreachable
from service.board.rebuild import posted
from service.goal import priority_faults
from service.rules import METRICS
from service.spec import SearchSpec
from trials import layout, rows, segments
from trials.store import Conflict, Damaged, Store
from trials.tasks import kind_of

REQUEST = ("spec", "priority", "code", "requirements", "name")  # the keys of a submitted body
_ALL_METRICS = {name: mode for kind in METRICS.values() for name, mode in kind.items()}
LIBRARIES = ("torch", "optuna", "pyarrow")
MOST_REQUIREMENTS = 100
log = logging.getLogger("continua.api")
_SHA = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")
_VERSION = r"\s*(==|!=|<=|>=|~=|<|>)\s*[A-Za-z0-9.*+]+\s*"
_REQUIREMENT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._-]+\])?({_VERSION}(,{_VERSION})*)?")


class KeyReused(Conflict):
    """A request's key was used before, for another body."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A body as it was sent, in parts. Raises nothing: `faults` says what is wrong."""

    spec: Any
    priority: Any = PRIORITY
    code: Any = None
    requirements: Any = ()
    name: Any = None

    @classmethod
    def from_dict(cls, data: object) -> Request:
        """A request from plain data. Raises `Invalid` where the keys are not `REQUEST`'s."""
        if not isinstance(data, Mapping):
            raise Invalid([f"request: must be a mapping such as {{spec: {{...}}, priority: 10}}, but got {data!r}."])
        faults = [unknown("request", key, REQUEST) for key in data if key not in REQUEST]
        if "spec" not in data:
            faults.append("request.spec: is missing; send {spec: {task: ..., space: ..., budget: ...}}.")
        if faults:
            raise Invalid(faults)
        given = {key: value for key, value in data.items() if value is not None or key == "spec"}
        return cls(**given)


def submit(
    store: Store,
    board: Board,
    data: object,
    *,
    owner: str = "",
    priority: Any = PRIORITY,
    code: Any = None,
    requirements: Any = (),
    key: str | None = None,
    name: Any = None,
) -> tuple[Job, bool]:
    """A new search from a spec as plain data, or the one that the same request made before; and which of the two.

    Args:
        owner: whose it is.
        code: sha256 of a zip that is in the store, with the user's own code.
        requirements: what pip is to install beside it.
        key: the request's own, chosen by the client; the same with another body is a conflict.
        name: instead of the spec's own.

    Raises:
        Invalid: with every fault of the declaration and of what comes with it.
        KeyReused: when the key came with another body.
        OSError: when it cannot be made durable; then there is no search.
    """
    request = Request(spec=data, priority=priority, code=code, requirements=requirements, name=name)
    spec = _decided(_checked(request, store, key))
    digest = _digest(request)
    search_id = _free_id(store, spec.name)
    if key is not None:
        search_id = _reserved(store, owner, key, digest, search_id)
    document = {
        "name": spec.name,
        "labels": {},
        "replay": False,
        "spec": spec.to_dict(),
        "directory": "",
        "versions": dict(_versions()),
        "code": code,
        "requirements": list(requirements),
        "owner": owner,
        "priority": priority,
        "submitted": True,
        "request": {"key": key, "digest": digest},
    }
    new = _created(store, search_id, document)
    job = Job(id=search_id, name=spec.name, owner=owner, priority=priority, workers=spec.resources.workers)
    try:
        job = posted(store.search(search_id))
        job = board.post(job)
    except (Unreachable, Invalid, Damaged, OSError) as error:
        log.warning("search %s is in the store, but not on the board yet: %s", search_id, error)
    return job, new


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((library, version(library)) for library in LIBRARIES)


def _free_id(store: Store, name: str) -> str:
    while layout.search(store.root, search_id := layout.fresh_id(name)).exists():
        pass
    return search_id


# -- judging -----------------------------------------------------------------------------------------------------------


def _checked(request: Request, store: Store, key: str | None) -> SearchSpec:
    faults = _beside_faults(request, store, key)
    data, spec = request.spec, None
    if isinstance(data, Mapping) and "arms" in data:
        way = "run it with `continua compare SPEC`, or submit its arms one by one"
        faults.append(f"spec.arms: must be one search, but this is a comparison; {way}.")
    else:
        try:
            named = isinstance(data, Mapping) and isinstance(request.name, str)
            spec = SearchSpec.from_dict({**data, "name": request.name} if named else data)
        except Invalid as error:
            faults += error.faults
    if spec is not None and request.code is None:
        needy = {"task": spec.python, "network": isinstance(spec.network, Own)}
        faults += [
            f"spec.{where}: `module:attribute` is looked for in the code that is submitted along, but there is none; "
            "send `code`, the sha256 of a zip that is put under /v1/code (`continua submit` packs it)."
            for where, own in needy.items()
            if own
        ]
    if faults:
        raise Invalid(faults)
    assert spec is not None
    return spec


def _decided(spec: SearchSpec) -> SearchSpec:
    """The spec with its metric and which way it is better, as far as that needs no data: whoever reads the store before
    a worker does must know. A metric that is left to a task of unknown kind is one that is better when it is smaller.
    """
    kind = None if spec.python else kind_of(spec.task)
    metrics = {"value": "min"} if spec.python else {**(METRICS[kind] if kind else {}), **_ALL_METRICS}
    objective = spec.objective.resolved(metrics)
    metric = objective.metric if spec.python or kind else spec.objective.metric
    return replace(spec, objective=replace(objective, metric=metric))


def _beside_faults(request: Request, store: Store, key: str | None) -> list[str]:
    """What is wrong with what comes beside the spec."""
    found, code = priority_faults("priority", request.priority), request.code
    if request.name is not None and not (isinstance(request.name, str) and request.name):
        found.append(f"name: must be text, but got {request.name!r}.")
    if key is not None and not _KEY.fullmatch(key):
        found.append(f"Idempotency-Key: must be 1 to 255 visible ASCII characters, but got {key!r}.")
    if code is not None:
        if not isinstance(code, str) or not _SHA.fullmatch(code):
            found.append(f"code: must be the sha256 of a zip in 64 hex digits, but got {code!r}.")
        elif not layout.code(store.root, code).is_file():
            found.append(f"code: must be put first, but the store has no {code}; PUT /v1/code/{code}.")
    return found + requirement_faults(request.requirements)


def requirement_faults(requirements: Any) -> list[str]:
    """What is wrong with a list of requirements: names with versions, and neither options, URLs nor paths."""
    if isinstance(requirements, str) or not isinstance(requirements, Sequence):
        return [f"requirements: must be a list such as [scikit-image==0.25.0], but got {requirements!r}."]
    if len(requirements) > MOST_REQUIREMENTS:
        return [f"requirements: must be at most {MOST_REQUIREMENTS}, but got {len(requirements)}."]
    rule = "must be a package's name, with versions if need be (scikit-image==0.25.0)"
    return [
        f"requirements[{i}]: {rule}, but got {text!r}."
        for i, text in enumerate(requirements)
        if not (isinstance(text, str) and len(text) <= 200 and _REQUIREMENT.fullmatch(text))
    ]


# -- keeping -----------------------------------------------------------------------------------------------------------


def _digest(request: Request) -> str:
    parts = {name: getattr(request, name) for name in REQUEST}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _reserved(store: Store, owner: str, key: str, digest: str, search_id: str) -> str:
    """The id that a keyed request has: the first to write the note decides."""
    path = layout.request(store.root, hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest())
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
        segments.sync_directory(path.parent.parent)
    try:
        segments.write_once(path, rows.to_json({"search_id": search_id, "digest": digest}).encode())
        return search_id
    except FileExistsError:
        note = rows.from_json(path.read_text(encoding="utf-8"))
    if note["digest"] != digest:
        rule = f"one key goes with one request, but {key!r} made {note['search_id']} of another"
        raise KeyReused(f"Idempotency-Key: {rule}; choose a new key.")
    return str(note["search_id"])


def _created(store: Store, search_id: str, document: Mapping[str, Any]) -> bool:
    """Whether this made the search. One with a key may be there already, or still be made by its first sender, or have
    been given up by it: whoever comes first makes it."""
    try:
        store.create(search_id, document)
        return True
    except Invalid:
        if store.search(search_id).spec().get("request") != document["request"] or not document["request"]["key"]:
            raise
        return False
