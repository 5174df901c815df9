"""The spec: the declaration of a search that a user writes in YAML, JSON or Python, with every fault found at once.

    >>> spec = SearchSpec.from_dict({"task": "uci/digits", "network": {"kind": "mlp"}, "budget": {"trials": 256},
    ...                              "space": {"width.0": {"type": "width", "low": 4, "high": 128}}})
    >>> spec.batch_size()
    16

`from_dict` and `read` judge the declaration alone; `check` also loads the task, fills in what depends on it, and joins
the faults of both. Nothing heavier than numpy is loaded before a task is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import Invalid, Space, Topology
from search_spaces.cost import BOUNDS
from search_spaces.declarations import parameter_from_dict
from search_spaces.faults import unknown
from search_spaces.networks import NETWORKS, Network, Own, network_from_dict
from search_spaces.parameters import is_real
from search_spaces.space import json_schema
from service.documents import document, located, override
from service.graph_rules import foreign_faults
from service.rules import METRICS, between_faults, data_faults, is_python, task_kind_faults
from service.sections import Section, declared, declared_schema, part, rule, tame
from service.usercode import function
from trials.hypergradients import KINDS, Method
from trials.hypergradients.method import NAMES
from trials.training import OPTIMIZERS, WAYS, Training

if TYPE_CHECKING:
    from trials.tasks import Task

#: name -> its own options
SAMPLERS: dict[str, tuple[str, ...]] = {
    "tpe": ("startup",),
    "random": (),
    "cmaes": (),
    "capacity": ("pairs", "sigma", "lr"),
}
LATER_BOUNDS = ("latency_ms",)
MOST_LAYERS, MOST_NUMBERS = 1_000, 10_000  # more is a slip, and slow or fatal to work with


# -- the sections ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sampler(Section):
    """Which points are asked. `startup` is how many random ones TPE begins with. `capacity` perturbs its mean by
    `sigma` and steps by `lr`, both in log size, on `pairs` of trials."""

    WHERE = "search.sampler"

    kind: str = rule("tpe", names=tuple(SAMPLERS), what="sampler")
    startup: int = rule(16, kind="whole number", least=1)
    pairs: int = rule(8, kind="whole number", least=1)
    sigma: float = rule(0.25, kind="number", above=True)
    lr: float = rule(0.1, kind="number", above=True)

    @classmethod
    def parse(cls, data: object, where: str = "") -> tuple[dict[str, Any], list[str]]:
        given = {"kind": data} if isinstance(data, str) else data
        values, faults = super().parse(given, where)
        assert isinstance(given, Mapping)
        own = ("kind", *SAMPLERS.get(str(values["kind"]), tuple(values)))
        foreign = [key for key in given if key in values and key not in own]
        return values, faults + [unknown(cls.WHERE, key, own, f"option of {values['kind']}") for key in foreign]

    def to_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("kind", *SAMPLERS[self.kind])}


def _read_method(data: object) -> Method:
    given = {"kind": data} if isinstance(data, str) else data
    if isinstance(given, Mapping) and "kind" in given:
        given = {**given, "kind": str(given["kind"])}  # `Method` looks its kind up, so it must be hashable
    return declared(Method, "search.hypergradient", given)


_METHOD_SCHEMA = {"anyOf": [{"enum": list(KINDS)}, declared_schema(Method, kind=tuple(KINDS), **NAMES)]}


@dataclass(frozen=True, kw_only=True)
class SearchSection(Section):
    """How points are chosen and moved. `batch` is the size of a generation; `auto`: see `SearchSpec.batch_size`."""

    WHERE = "search"

    sampler: Sampler = field(default_factory=Sampler, metadata=part(Sampler, names=SAMPLERS))
    hypergradient: Method = field(default_factory=Method, metadata=part(Method, _read_method, _METHOD_SCHEMA))
    pruner: str = rule("none", names=("none",), what="pruner")
    batch: int | str = rule("auto", names=("auto",), kind="whole number", least=1)
    asynchronous: bool = rule(False, kind="switch", later="asking points without generations is")

    @classmethod
    def value_faults(cls, where: str, values: Mapping[str, Any]) -> list[str]:
        method = values.get("hypergradient")
        own = method.faults(f"{where}.hypergradient") if isinstance(method, Method) else []
        return super().value_faults(where, values) + own


def _read_penalty(data: object) -> dict[str, float]:
    if not isinstance(data, Mapping):
        raise Invalid([f"objective.penalty: must be a mapping such as {{flops: 1.0e-8}}, but got {data!r}."])
    faults = [unknown("objective.penalty", name, BOUNDS, "cost") for name in data if name not in BOUNDS]
    faults += [
        f"objective.penalty.{name}: must be a number above 0, but got {weight!r}."
        for name, weight in data.items()
        if name in BOUNDS and not (is_real(weight) and weight > 0)
    ]
    if faults:
        raise Invalid(faults)
    return {str(name): float(weight) for name, weight in data.items()}


_PENALTY = {
    "type": "object",
    "properties": {name: {"type": "number", "exclusiveMinimum": 0} for name in BOUNDS},
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Objective(Section):
    """What is optimised. `auto` takes the task's first metric, and the direction in which a metric is better; `penalty`
    maps costs of the network to what each unit of them takes from the value."""

    WHERE = "objective"

    metric: str = rule("auto", kind="text")
    mode: str = rule("auto", names=("auto", "min", "max"), what="mode")
    penalty: Mapping[str, float] = field(default_factory=dict, metadata=part(Mapping, _read_penalty, _PENALTY))

    @classmethod
    def parse(cls, data: object, where: str = "") -> tuple[dict[str, Any], list[str]]:
        if isinstance(data, list):
            raise Invalid(
                ["objective: must be one {metric: ..., mode: min}, but got a list; several are not known yet."]
            )
        return super().parse(data, where)

    def resolved(self, metrics: Mapping[str, str]) -> Objective:
        """With every `auto` filled in; `metrics` maps the task's metrics to their directions."""
        metric = next(iter(metrics)) if self.metric == "auto" else self.metric
        mode = metrics.get(metric, "min") if self.mode == "auto" else self.mode
        return replace(self, metric=metric, mode=mode)


@dataclass(frozen=True, kw_only=True)
class Bound(Section):
    """The greatest allowed value of a cost: a network's `parameters`, or the `flops` or `activation_bytes` of one
    example's forward pass."""

    WHERE = "constraints"

    max: float = rule(kind="number", above=True)


@dataclass(frozen=True, kw_only=True)
class Replicates(Section):
    """More lanes of the same point; its value is their mean."""

    WHERE = "replicates"

    seeds: int = rule(1, kind="whole number", least=1)
    folds: int = rule(1, kind="whole number", least=1, later="cross-validation is")


@dataclass(frozen=True, kw_only=True)
class Budget(Section):
    """When a search ends: at the first bound that it meets. Trials, epochs and flops are never exceeded."""

    WHERE = "budget"

    trials: int | None = rule(None, kind="whole number", least=1)
    epochs: int | None = rule(None, kind="whole number", least=1)
    flops: float | None = rule(None, kind="number", above=True)
    device_seconds: float | None = rule(None, kind="number", above=True)
    wall_seconds: float | None = rule(None, kind="number", above=True)

    @classmethod
    def value_faults(cls, where: str, values: Mapping[str, Any]) -> list[str]:
        names = [item.name for item in fields(cls)]
        if all(values.get(name) is None for name in names):
            return [f"{where}: must hold at least one of {', '.join(names)}, but got none; write {{trials: 64}}."]
        return super().value_faults(where, values)


@dataclass(frozen=True, kw_only=True)
class Resources(Section):
    """What a search runs on. `lanes` is the number of lanes in a bundle, `way` how lanes with convolutions run; `auto`
    measures. `trial_seconds` is how long a trial may take; its worker is asked to end then, and made to after
    `grace_seconds`."""

    WHERE = "resources"

    workers: int = rule(2, kind="whole number", least=1)
    cpus_per_worker: float = rule(1, kind="number", above=True)
    gpus_per_worker: float = rule(0, kind="number")
    lanes: int | str = rule("auto", names=("auto",), kind="whole number", least=1)
    way: str = rule("auto", names=("auto", *WAYS), what="way of running lanes")
    trial_seconds: float | None = rule(None, kind="number", above=True)
    grace_seconds: float = rule(5, kind="number")


def _read_task(data: object) -> str | Mapping[str, Any]:
    try:
        if isinstance(data, str | Mapping) and data and json.dumps(data, allow_nan=False):
            return data
    except (TypeError, ValueError):
        pass
    ways = (
        "a name, a file, module:function or {kind: table, path: FILE} (or images, train: FILE) of plain, finite values"
    )
    raise Invalid([f"task: must be {ways}, but got {data!r}."])


def _read_network(data: object) -> Network | None:
    network = None if data is None else network_from_dict(data)
    if network is not None and network.depth > MOST_LAYERS:
        raise Invalid([f"network.{network.DEEP}: must be at most {MOST_LAYERS}, but got {network.depth!r}."])
    return network


def _read_space(data: object) -> Space:
    if not isinstance(data, Mapping):
        return Space.from_dict(data)
    sizes, faults = {}, []
    for name, declaration in data.items():
        faults += foreign_faults(f"space.{name}", declaration) if isinstance(declaration, Mapping) else []
        parameter, _ = parameter_from_dict(f"space.{name}", declaration)
        if isinstance(parameter, Topology) and parameter.size > MOST_NUMBERS:
            sizes[name] = parameter.size
    faults += [
        f"space.{n}: must have at most {MOST_NUMBERS} numbers, but got {size}; shrink it." for n, size in sizes.items()
    ]
    small = {name: declaration for name, declaration in data.items() if name not in sizes}
    try:
        space = Space.from_dict(small) if small or not faults else None
    except Invalid as error:
        faults += error.faults
    if faults:
        raise Invalid(faults)
    assert space is not None
    return space


def _read_training(data: object) -> Training:
    return declared(Training, "training", data)


def _read_bounds(data: object) -> dict[str, Bound]:
    if not isinstance(data, Mapping):
        raise Invalid([f"constraints: must be a mapping such as {{parameters: {{max: 6000}}}}, but got {data!r}."])
    bounds, faults = {}, []
    for name, bound in data.items():
        if name in LATER_BOUNDS:
            faults.append(f"constraints.{name}: is not known yet; bound {' or '.join(BOUNDS)} instead.")
        elif name not in BOUNDS:
            faults.append(unknown("constraints", name, BOUNDS, "bound"))
        else:
            try:
                bounds[name] = bound if isinstance(bound, Bound) else Bound.read(bound, f"constraints.{name}")
            except Invalid as error:
                faults += error.faults
    if faults:
        raise Invalid(faults)
    return bounds


def _network_schema(cls: type[Network], kind: Mapping[str, Any]) -> dict[str, Any]:
    known = declared_schema(cls, **{key: names for key, (names, _) in cls.OPTIONS.items()})
    shown = {key: known["properties"][key] for key in cls.written()}
    return {**known, "properties": {"kind": kind, **shown}, "required": ["kind"]}


_REFERENCE = {"type": "string", "pattern": ":"}
_KINDS = [_network_schema(cls, {"const": name}) for name, cls in NETWORKS.items()]
_NETWORK = {"anyOf": [*_KINDS, _network_schema(Own, _REFERENCE), _REFERENCE, {"type": "null"}]}
_TRAINING = declared_schema(Training, optimizer=OPTIMIZERS)
_BOUNDS = {"type": "object", "properties": dict.fromkeys(BOUNDS, Bound.schema()), "additionalProperties": False}


# -- the whole ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SearchSpec(Section):
    """The declaration of a search (no `network`: a plain Python objective). Raises `Invalid` with every broken rule."""

    name: str = rule("search", kind="text")
    task: str | Mapping[str, Any] = field(metadata=part(object, _read_task, {"type": ["string", "object"]}))
    network: Network | None = field(default=None, metadata=part(Network, _read_network, _NETWORK))
    space: Space = field(metadata=part(Space, _read_space, json_schema()))
    training: Training = field(default_factory=Training, metadata=part(Training, _read_training, _TRAINING))
    search: SearchSection = field(default_factory=SearchSection, metadata=part(SearchSection))
    objective: Objective = field(default_factory=Objective, metadata=part(Objective))
    constraints: Mapping[str, Bound] = field(default_factory=dict, metadata=part(Mapping, _read_bounds, _BOUNDS))
    replicates: Replicates = field(default_factory=Replicates, metadata=part(Replicates))
    realise: str = rule("auto", names=("auto", "rounded", "fractional"), what="way to realise a size")
    budget: Budget = field(metadata=part(Budget))
    resources: Resources = field(default_factory=Resources, metadata=part(Resources))
    seed: int = rule(0, kind="whole number")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is not None:
            object.__setattr__(self, "network", self.network.within(self.space))

    @classmethod
    def from_dict(cls, data: object) -> SearchSpec:
        """The spec from plain data. Raises `Invalid` with every fault of all its sections."""
        return cls.read(data)

    @classmethod
    def parse(cls, data: object, where: str = "") -> tuple[dict[str, Any], list[str]]:
        clean = tame(data)
        values, faults = super().parse(clean, where)
        if "space" not in values and (alone := _sound_parameters(clean.get("space"))):
            faulty = {str(name) for name in clean["space"]} - set(alone.parameters)
            faults += between_faults({**values, "space": alone}, whole=False, faulty=faulty)
        return values, faults

    @classmethod
    def value_faults(cls, where: str, values: Mapping[str, Any]) -> list[str]:
        sound, faults = {}, []
        for name, value in values.items():
            found = super().value_faults(where, {name: value})
            if not found and isinstance(value, Network | Training):
                found = value.faults()
            if not found and name in ("task", "constraints"):
                found = _faults_of(_read_task if name == "task" else _read_bounds, value)
            faults += found
            sound.update({} if found else {name: value})
        faults += task_kind_faults(sound)
        return faults + (between_faults(sound, whole=True) if "space" in sound else [])

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data that `from_dict` reads back to an equal spec."""
        data = super().to_dict()
        if self.python:
            del data["training"]
        return data

    def digest(self) -> str:
        """Sixteen hex digits, equal for equal specs."""
        return hashlib.sha256(json.dumps(tame(self.to_dict(), whole=True), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def python(self) -> bool:
        """Whether the task is a plain Python objective, `module:function`."""
        return is_python(self.task)

    @property
    def own_code(self) -> bool:
        """Whether a worker runs the user's own Python."""
        return self.python or isinstance(self.network, Own)

    def batch_size(self) -> int:
        """Points of a generation; `auto`: a sixteenth of the trials, at least 4 and one for each worker."""
        if isinstance(self.search.batch, int):
            return self.search.batch
        trials, least = self.budget.trials, max(4, self.resources.workers)
        return max(16, least) if trials is None else min(trials, max(least, math.ceil(trials / 16)))


def read(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """The spec in a YAML or JSON file, with `key=value` overrides. Its name is the file's where it has none."""
    return SearchSpec.from_dict(_document(path, overrides))


def check(
    given: Path | Mapping[str, Any] | SearchSpec, overrides: Sequence[str] = (), *, directory: Path | None = None
) -> tuple[SearchSpec, Task | Callable[..., Any]]:
    """The spec with what depends on its task filled in (the metric and its mode), and the task itself.

    `given` is a file, plain data or a spec; the user's own code is looked for in `directory` (the file's) first.

    Raises:
        Invalid: with the faults of the spec, of its task, and between the two.
    """
    if isinstance(given, Path):
        data, directory = _document(given, overrides), directory or given.parent
    else:
        data = override(given.to_dict() if isinstance(given, SearchSpec) else given, overrides)
    values, faults = SearchSpec.parse(data)
    task = None
    if "task" in values:
        try:
            task = _load_task(values["task"], directory)
        except Invalid as error:
            faults += error.faults
    metrics = {"value": "min"}
    if task is not None and not is_python(values["task"]):
        metrics = METRICS[task.kind]  # type: ignore[union-attr]
        faults += _resolved(values, task, directory)  # type: ignore[arg-type]
        faults += data_faults(values, task)  # type: ignore[arg-type]
    if faults:
        raise Invalid(faults)
    assert task is not None
    spec = SearchSpec(**values)
    return replace(spec, objective=spec.objective.resolved(metrics)), task


def _resolved(values: dict[str, Any], task: Task, directory: Path | None) -> list[str]:
    """Put the user's own network, with its gates found, in the place of its name; every fault of it."""
    network = values.get("network")
    if not isinstance(network, Own) or network.faults():
        return []
    from search_spaces.realise import resolve  # torch, which declarations do without

    try:
        places = [*([directory] if directory else []), Path.cwd()]
        factory = function(network.reference, places, where="network")
        values["network"] = resolve(network, factory, task.shape, task.outputs)
    except Invalid as error:
        return list(error.faults)
    return between_faults(values, whole=True) if "space" in values else []


def spec_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a whole spec, for editors and clients."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "search", **SearchSpec.schema()}


# -- reading ---------------------------------------------------------------------------------------------------------


def _sound_parameters(data: object) -> Space | None:
    """The parameters of a faulty space that are sound on their own."""
    sound: dict[str, Any] = {}
    for name, declaration in data.items() if isinstance(data, Mapping) else ():
        if isinstance(declaration, Mapping):
            alone = {name: {key: value for key, value in declaration.items() if key != "when"}}
            sound.update({} if _faults_of(_read_space, alone) else alone)
    return Space.from_dict(sound) if sound else None


def _faults_of(reader: Callable[[Any], object], data: object) -> list[str]:
    try:
        reader(data)
    except Invalid as error:
        return list(error.faults)
    return []


# -- from files and to plain data --------------------------------------------------------------------------------------


def _document(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    return override({"name": path.stem, **document(path)}, overrides)


def _load_task(task: str | Mapping[str, Any], directory: Path | None) -> Task | Callable[..., Any]:
    if isinstance(task, str) and is_python(task):
        return function(task, [*([directory] if directory else []), Path.cwd()])
    from trials.tasks import load  # declarations are read without the libraries that data needs

    return load(located(task, directory) if directory else task)
