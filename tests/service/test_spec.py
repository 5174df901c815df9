"""The spec: what is accepted, what is refused and in which words, and that nothing but `Invalid` ever comes out."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces import Invalid, Space
from search_spaces.networks import MLP
from service.spec import METRICS, Bound, Budget, SearchSpec, check, is_python, read, spec_schema
from trials.tasks import known
from trials.tasks.task import METRICS as TASK_METRICS
from trials.training import Training

CANONICAL = """
name: digits-width
task: uci/digits                    # a comment
network: {kind: mlp, layers: 2}
space:
  width.0:  {type: width, low: 4, high: 128}
  width.1:  {type: width, low: 4, high: 128}
  lr:       {type: float, low: 1.0e-3, high: 1.0, log: true}
  momentum: {type: float, low: 0.0, high: 0.95}
training: {optimizer: sgd, batch_size: 64, epochs: 20}
search: {sampler: tpe, hypergradient: none, pruner: none, batch: 16}
objective: {metric: val_error, mode: min}
constraints: {parameters: {max: 6000}}
replicates: {seeds: 1, folds: 1}
realise: auto
budget: {trials: 256}
resources: {workers: 2, cpus_per_worker: 1, gpus_per_worker: 0, lanes: auto}
seed: 0
"""
BASE: dict[str, Any] = {
    "name": "base",
    "task": "uci/digits",
    "network": {"kind": "mlp", "layers": 2},
    "space": {
        "width.0": {"type": "width", "low": 4, "high": 128},
        "lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
    },
    "training": {"optimizer": "sgd"},
    "search": {"sampler": "tpe"},
    "objective": {"metric": "val_error"},
    "constraints": {"parameters": {"max": 6000}},
    "replicates": {"seeds": 1},
    "realise": "auto",
    "budget": {"trials": 256},
    "resources": {"workers": 2},
    "seed": 0,
}
WIDTH = {"type": "width", "low": 4, "high": 128}
GRADIENT = {**WIDTH, "moved_by": "gradient"}
PYTHON = {"task": "mine:objective", "space": {"x": {"type": "float", "low": 0, "high": 1}}, "budget": {"trials": 8}}


def changed(**sections: Any) -> dict[str, Any]:
    """BASE with sections replaced; None drops one."""
    data = {**copy.deepcopy(BASE), **sections}
    return {key: value for key, value in data.items() if value is not None}


def write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# -- what is accepted --------------------------------------------------------------------------------------------------


def test_the_canonical_example_is_read_and_round_trips(tmp_path):
    spec = read(write(tmp_path, CANONICAL))
    assert (spec.name, spec.task, spec.network) == ("digits-width", "uci/digits", MLP(layers=2))
    assert spec.training == Training(optimizer="sgd", batch_size=64, epochs=20)
    assert (spec.search.sampler.kind, spec.search.batch, spec.search.hypergradient.kind) == ("tpe", 16, "none")
    assert (spec.constraints["parameters"].max, spec.budget.trials, spec.resources.lanes) == (6000, 256, "auto")
    through_json = SearchSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert through_json == spec
    assert through_json.digest() == spec.digest()


def test_json_and_yaml_give_the_same_spec(tmp_path):
    spec = read(write(tmp_path, CANONICAL))
    assert read(write(tmp_path, json.dumps(spec.to_dict()), "spec.json")) == spec


def test_a_digest_tells_specs_apart_and_not_spellings():
    digest = SearchSpec.from_dict(BASE).digest()
    assert SearchSpec.from_dict(changed(space={**BASE["space"], "width.0": {**WIDTH, "low": 4.0}})).digest() == digest
    assert SearchSpec.from_dict(dict(reversed(BASE.items()))).digest() == digest
    others = [changed(seed=1), changed(name="other"), changed(budget={"trials": 255}), changed(search={"batch": 7})]
    assert len({digest, *(SearchSpec.from_dict(other).digest() for other in others)}) == 5


@pytest.mark.parametrize(
    "sections",
    [
        {"search": {"sampler": {"kind": "tpe", "startup": 4}}},
        {"search": {"sampler": "random"}},
        {"search": {"hypergradient": "descent"}, "space": {"width.0": GRADIENT}},
        {
            "search": {"hypergradient": {"kind": "bilevel", "optimizer": "sgd", "lr": 0.1, "every": 2, "warmup": 0}},
            "space": {"width.0": {**GRADIENT, "start": 7.5}, "lr": BASE["space"]["lr"]},
            "realise": "fractional",
        },
        {"task": {"kind": "table", "path": "cars.csv", "target": -1, "missing": ["?", "-"]}},
        {"constraints": {}, "budget": {"epochs": 100, "flops": 1e12, "device_seconds": 5, "wall_seconds": 0.5}},
        {"replicates": {"seeds": 3}, "resources": {"lanes": 16, "cpus_per_worker": 0.5, "gpus_per_worker": 0.25}},
        {"network": {"kind": "mlp", "layers": 0}, "space": {"lr": BASE["space"]["lr"]}},
        {
            "space": {
                "optimizer": {"type": "choice", "options": ["sgd", "adam"]},
                "activation": {"type": "choice", "options": ["relu", "tanh"]},
            }
        },
    ],
)
def test_valid_specs_round_trip_and_match_the_schema(sections):
    spec = SearchSpec.from_dict(changed(**sections))
    data = json.loads(json.dumps(spec.to_dict(), allow_nan=False))
    assert SearchSpec.from_dict(data) == spec
    jsonschema.validate(data, spec_schema())
    jsonschema.validate(changed(**sections), spec_schema())


def test_defaults_fill_what_is_silent():
    spec = SearchSpec.from_dict({key: BASE[key] for key in ("task", "network", "space", "budget")})
    assert (spec.name, spec.realise, spec.seed, spec.search.batch) == ("search", "auto", 0, "auto")
    assert (spec.objective.metric, spec.resources.workers, spec.constraints) == ("auto", 2, {})


def test_a_python_objective_frees_the_names():
    spec = SearchSpec.from_dict({**PYTHON, "objective": {"metric": "anything", "mode": "max"}})
    assert spec.python
    assert spec.network is None
    assert "training" not in spec.to_dict()
    assert SearchSpec.from_dict(spec.to_dict()) == spec


def test_no_known_task_is_taken_for_a_python_objective():
    assert not any(is_python(name) for name in known())
    assert is_python("package.module:Class.method")
    assert not is_python("cars.csv")


def test_the_metrics_are_those_of_the_tasks():
    assert METRICS == TASK_METRICS


@pytest.mark.parametrize(
    ("trials", "batch", "workers", "size"),
    [
        (256, "auto", 2, 16),
        (100, "auto", 2, 7),
        (16, "auto", 2, 4),
        (3, "auto", 2, 3),
        (256, "auto", 40, 40),
        (256, 5, 40, 5),
        (None, "auto", 2, 16),
    ],
)
def test_the_batch_is_a_sixteenth_within_bounds(trials, batch, workers, size):
    budget = {"trials": trials} if trials else {"wall_seconds": 60}
    spec = SearchSpec.from_dict(changed(budget=budget, search={"batch": batch}, resources={"workers": workers}))
    assert spec.batch_size() == size


def test_a_spec_made_in_python_is_judged_as_well():
    space = Space.from_dict({"width.0": WIDTH})
    spec = SearchSpec(task="uci/iris", network=MLP(), space=space, budget=Budget(trials=4))
    assert SearchSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(Invalid) as caught:
        SearchSpec(name=3, task=5, network=MLP(layers=-1), space="x", training=Training(lr=-1), budget=4, seed=10**400)  # type: ignore[arg-type]
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "name",
        "task",
        "network.layers",
        "space",
        "training.lr",
        "budget",
        "seed",
    ]
    with pytest.raises(Invalid, match=r"budget.trials: must be a whole number"):
        Budget(trials=0)
    with pytest.raises(Invalid, match=r"unknown bound 'speed'"):
        SearchSpec(task="a", network=MLP(), space=space, budget=Budget(trials=4), constraints={"speed": Bound(max=1)})


# -- spec and task together --------------------------------------------------------------------------------------------


def test_check_fills_in_the_metric_of_the_task():
    spec, task = check(changed(task="uci/diabetes", objective=None))
    assert (spec.objective.metric, spec.objective.mode, task.kind) == ("val_mse", "min", "regression")
    spec, _ = check(changed(objective={"metric": "val_accuracy"}))
    assert (spec.objective.metric, spec.objective.mode) == ("val_accuracy", "max")
    spec, _ = check(changed(objective={"metric": "val_accuracy", "mode": "min"}))
    assert spec.objective.mode == "min"
    assert check(spec)[0] == spec


def test_check_joins_the_faults_of_the_spec_and_of_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cars.csv").write_text("a,b\n1,2\n3,4\n")
    bad = changed(
        task={"kind": "table", "path": "cars.csv", "target": "price"}, space={"width.0": {**WIDTH, "low": 500}}
    )
    with pytest.raises(Invalid) as caught:
        check(bad)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["space.width.0", "task.target"]


def test_check_refuses_the_metric_of_another_kind_of_task():
    with pytest.raises(Invalid, match=r"unknown metric of a classification task 'val_r2'.*Known: val_accuracy"):
        check(changed(objective={"metric": "val_r2"}))


def test_check_names_an_unknown_task_beside_other_faults():
    with pytest.raises(Invalid) as caught:
        check(changed(task="uci/digit", seed=-1))
    assert "Did you mean 'uci/digits'?" in caught.value.faults[1]
    assert caught.value.faults[0].startswith("seed:")


def least_parameters(*sizes: int) -> int:
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def test_a_bound_that_nothing_meets_is_refused_with_the_smallest_figure():
    least = least_parameters(64, 4, 64, 10)  # width.1 has the network's own 64
    with pytest.raises(
        Invalid, match=rf"constraints.parameters.max: even the smallest.*parameters={least}, but got max="
    ):
        check(changed(constraints={"parameters": {"max": least - 1}}))
    check(changed(constraints={"parameters": {"max": least}}))
    flops = 2 * (64 * 4 + 4 * 64 + 64 * 10)
    with pytest.raises(Invalid, match=rf"constraints.flops.max: .*flops={flops}, "):
        check(changed(constraints={"flops": {"max": flops - 1}}))
    check(changed(constraints={"flops": {"max": flops}}))


def test_the_smallest_network_is_the_one_that_is_trained():
    space = {"width.0": {**WIDTH, "low": 4.4}, "width.1": {**WIDTH, "low": 4}}
    whole = least_parameters(64, 4, 4, 10)
    check(changed(space=space, constraints={"parameters": {"max": whole}}))
    fractional = changed(space=space, constraints={"parameters": {"max": whole}}, realise="fractional")
    with pytest.raises(Invalid, match=r"constraints.parameters.max"):
        check(fractional)


# -- the user's own function -------------------------------------------------------------------------------------------


def mine(folder: Path, module: str, source: str, reference: str) -> Path:
    (folder / f"{module}.py").write_text(source)
    return write(folder, json.dumps({**PYTHON, "task": reference}), "spec.json")


def test_a_function_beside_the_spec_is_found_and_the_path_left_as_it_was(tmp_path):
    before = list(sys.path)
    path = mine(tmp_path, "mine_found", "def objective(trial):\n    return 41 + trial\n", "mine_found:objective")
    spec, objective = check(path)
    assert objective(1) == 42
    assert (spec.objective.metric, spec.objective.mode, spec.name) == ("value", "min", "spec")
    assert sys.path == before


def test_a_function_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text("class Toy:\n    def run(trial):\n        return 7\n")
    monkeypatch.chdir(tmp_path)
    assert check({**PYTHON, "task": "mine_here:Toy.run"})[1](None) == 7


@pytest.mark.parametrize(
    ("source", "attribute", "sentence"),
    [
        ("import nothing_of_that_name", "objective", "must be a module that imports, but got ModuleNotFoundError"),
        ("def objective(:", "objective", "SyntaxError"),
        ("raise RuntimeError('at\\nimport')", "objective", "RuntimeError: at import"),
        ("raise SystemExit(3)", "objective", "SystemExit: 3"),
        (
            "def objective(trial): return 1",
            "objectve",
            "unknown function of {module} 'objectve'. Did you mean 'objective'?",
        ),
        ("objective = 3", "objective", "'{module}:objective' must be a function, but got 3"),
    ],
)
def test_code_that_cannot_be_used_is_a_fault_beside_the_others(tmp_path, request, source, attribute, sentence):
    module = f"mine_{abs(hash(request.node.name))}"
    path = mine(tmp_path, module, source, f"{module}:{attribute}")
    with pytest.raises(Invalid) as caught:
        check(path, ["seed=-1"])
    assert caught.value.faults[0].startswith("seed:")
    assert sentence.format(module=module) in caught.value.faults[1]
    assert "\n" not in caught.value.faults[1]


def test_a_module_that_is_not_there_has_a_neighbour(tmp_path):
    path = mine(tmp_path, "mine_neighbour", "", "mine_neighbor:objective")
    with pytest.raises(Invalid, match=r"task: 'mine_neighbor' must be a module .*Did you mean 'mine_neighbour'\?"):
        check(path)


@pytest.mark.parametrize("name", ["service", "trials", "search_spaces"])
@pytest.mark.parametrize("as_file", [True, False])
def test_code_that_would_hide_ours_is_refused(tmp_path, name, as_file):
    path = mine(tmp_path, "mine_hidden", "def objective(trial): return 1", "mine_hidden:objective")
    (tmp_path / f"{name}.py").touch() if as_file else (tmp_path / name).mkdir()
    with pytest.raises(Invalid, match=rf"would hide continua's own package `{name}`; rename it"):
        check(path)


def test_our_own_directory_hides_nothing(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert check({**PYTHON, "task": "math:sqrt"})[1](49) == 7


# -- files and overrides -----------------------------------------------------------------------------------------------


def test_overrides_resolve_the_longest_key_that_exists(tmp_path):
    path = write(tmp_path, CANONICAL)
    sets = [
        "budget.trials=64",
        "space.width.0.low=8",
        "budget.flops=1e12",
        "search.sampler.startup=4",
        "name=other",
        "space.weight_decay={type: float, low: 0, high: 0.1}",
        "network.layers=3",
        "space.width.2={type: width, low: 2, high: 8}",
        "space.width.2.high=16",
        "constraints.flops.max=20000",
        "search.hypergradient.lr=0.1",
    ]
    spec = read(path, sets)
    assert (spec.budget.trials, spec.budget.flops, spec.name, spec.search.sampler.startup) == (64, 1e12, "other", 4)
    assert spec.space.to_dict()["width.0"] == {"type": "width", "low": 8, "high": 128}
    assert spec.space.to_dict()["width.2"] == {"type": "width", "low": 2, "high": 16}
    assert (spec.constraints["flops"].max, spec.search.hypergradient.lr) == (20000, 0.1)
    assert read(path).budget.trials == 256


def test_of_two_names_the_longer_is_meant(tmp_path):
    one = {"type": "float", "low": 0, "high": 1}
    path = write(tmp_path, json.dumps({**PYTHON, "space": {"x": one, "x.y": one}}), "a.json")
    space = read(path, ["space.x.y.low=0.5", "space.x.low=0.25"]).space.to_dict()
    assert (space["x"]["low"], space["x.y"]["low"]) == (0.25, 0.5)


def test_faulty_overrides_are_all_named(tmp_path):
    with pytest.raises(Invalid) as caught:
        read(write(tmp_path, CANONICAL), ["seed", "name.first=x", "budget..trials=3", "seed=[1", "=3"])
    first, second, third, fourth, fifth = caught.value.faults
    assert "--set seed: must be KEY=VALUE such as budget.trials=64." in first
    assert "--set name.first: name must be a mapping, but is 'digits-width'; set it as a whole." in second
    assert "budget..trials" in third
    assert "--set seed:1:3: must be YAML" in fourth
    assert "KEY=VALUE" in fifth


def test_an_override_meets_the_same_rules(tmp_path):
    with pytest.raises(Invalid, match=r"budget: unknown key 'trial'. Did you mean 'trials'\?"):
        read(write(tmp_path, CANONICAL), ["budget.trial=3"])
    with pytest.raises(Invalid, match=r"space.width.0: unknown key 'lo'. Did you mean 'low'\?"):
        read(write(tmp_path, CANONICAL), ["space.width.0.lo=3"])


def test_the_file_names_a_nameless_spec(tmp_path):
    assert read(write(tmp_path, CANONICAL.replace("name: digits-width\n", ""), "my-search.yaml")).name == "my-search"


# -- the schema, the imports, and whatever else comes in ---------------------------------------------------------------


def test_the_schema_is_a_schema_and_refuses_slips():
    schema = spec_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    slips = [
        changed(nmae=1),
        changed(budget=None),
        changed(budget={"trials": 0}),
        changed(search={"sampler": "tpee"}),
        changed(resources={"lanes": "all"}),
        changed(constraints={"speed": {"max": 1}}),
        changed(realise="round"),
        changed(training={"optimizer": "sdg"}),
        changed(network={"layers": 2}),
        changed(search={"hypergradient": {"evry": 2}}),
    ]
    for slip in slips:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(slip, schema)


def test_importing_the_spec_loads_nothing_heavy():
    code = "import sys, service.spec; print(*{name.split('.')[0] for name in sys.modules})"
    root = Path(__file__).parents[2]
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    heavy = {"torch", "ray", "sklearn", "optuna", "pyarrow", "pandas", "duckdb", "pydantic", "redis", "scipy"}
    assert not heavy & set(loaded.stdout.split())


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**320)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "none", "tpe", "descent", "gradient", "width", "mine:f", "choice", "topology"])
)
KEYS = st.text(max_size=5) | st.sampled_from(
    ["kind", "type", "low", "high", "max", "options", "when", "trials", "layers"]
)
GARBAGE = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)


def places(data: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    here = [path] if path else []
    return (
        here + [p for key, inner in data.items() for p in places(inner, (*path, key))]
        if isinstance(data, dict)
        else here
    )


FULL = {
    **SearchSpec.from_dict(
        changed(space={"width.0": GRADIENT, "lr": BASE["space"]["lr"]}, search={"hypergradient": "bilevel"})
    ).to_dict(),
}
FULL["space"]["optimizer"] = {"type": "choice", "options": ["sgd", "adam"]}
FULL["space"]["momentum"] = {"type": "float", "low": 0.0, "high": 0.9, "when": {"optimizer": "sgd"}}
FULL["space"]["batch_size"] = {"type": "int", "low": 16, "high": 64, "log": True}
PROFILE = settings(deadline=None, derandomize=True, max_examples=400, suppress_health_check=list(HealthCheck))


def judge(data: object) -> None:
    """Whatever comes in, either a spec comes out that round-trips, or `Invalid` with sentences."""
    try:
        spec = SearchSpec.from_dict(data)
    except Invalid as error:
        faults = error.faults
    else:
        faults = ()
        round_trips(spec)
    assert all(isinstance(fault, str) and ":" in fault for fault in faults)


def round_trips(spec: SearchSpec) -> None:
    again = SearchSpec.from_dict(json.loads(json.dumps(spec.to_dict(), allow_nan=False)))
    assert again == spec
    assert again.digest() == spec.digest()


@pytest.mark.slow
@PROFILE
@given(place=st.sampled_from(places(FULL)), value=GARBAGE)
def test_garbage_at_any_key_is_refused_in_sentences(place, value):
    data: Any = copy.deepcopy(FULL)
    at = data
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    judge(data)


@pytest.mark.slow
@PROFILE
@given(data=GARBAGE | st.dictionaries(st.sampled_from(sorted(FULL)) | KEYS, GARBAGE, max_size=6))
def test_garbage_as_a_spec_is_refused_in_sentences(data):
    judge(data)
