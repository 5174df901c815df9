"""Every rule of a spec on its own, in its own words; and all of them at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from search_spaces import Invalid
from service.spec import SearchSpec

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


def faults(data: object) -> tuple[str, ...]:
    with pytest.raises(Invalid) as caught:
        SearchSpec.from_dict(data)
    return caught.value.faults


REFUSED = [
    ({"objective": {"penalty": 3}}, "objective.penalty: must be a mapping such as {flops: 1.0e-8}, but got 3."),
    ({"objective": {"penalty": {"flop": 1}}}, "objective.penalty: unknown cost 'flop'. Did you mean 'flops'?"),
    ({"objective": {"penalty": {"flops": 0}}}, "objective.penalty.flops: must be a number above 0, but got 0."),
    (
        {**PYTHON, "objective": {"penalty": {"flops": 1}}, "network": None, "constraints": None},
        "objective.penalty: prices a network's cost",
    ),
    (
        {"resources": {"way": "per_lan"}},
        "resources.way: unknown way of running lanes 'per_lan'. Did you mean 'per_lane'?",
    ),
    ({"nmae": "x"}, "spec: unknown key 'nmae'. Did you mean 'name'?"),
    ({"name": ""}, "name: must be one line of at most 200 characters, but got ''."),
    ({"name": "two\nlines"}, "name: must be one line"),
    ({"name": "x" * 201}, "name: must be one line"),
    ({"task": ""}, "task: must be a name, a file, module:function or {kind: table, path: FILE}"),
    ({"task": ["uci/digits"]}, "task: must be a name"),
    ({"task": {"kind": "table", "x": float("nan")}}, "of plain, finite values"),
    ({"network": None}, "network: is missing, but a task of data trains one; add {kind: mlp, layers: 2}."),
    ({"network": {"kind": "mpl"}}, "network.kind: unknown network 'mpl'. Did you mean 'mlp'?"),
    ({"network": {"kind": "mlp", "layer": 2}}, "network: unknown key 'layer'. Did you mean 'layers'?"),
    ({"network": {"kind": "mlp", "layers": 10**9}}, "network.layers: must be at most 1000, but got 1000000000."),
    ({"space": {}}, "space: must be a mapping of at least one parameter, but got {}."),
    (
        {"space": {"width.0": {**WIDTH, "low": 128, "high": 4}}},
        "space.width.0: `low < high` must hold, but got low=128, high=4.",
    ),
    ({"space": {"width.2": WIDTH}}, "space.width.2: unknown gate of this mlp 'width.2'. Did you mean 'width.1'?"),
    (
        {"space": {"lrr": {"type": "float", "low": 0, "high": 1}}},
        "space.lrr: unknown parameter (nothing uses it) 'lrr'. Did you mean 'lr'?",
    ),
    (
        {"space": {"t": {"type": "topology", "nodes": 1000}}},
        "space.t: must have at most 10000 numbers, but got 500500; shrink it.",
    ),
    ({"space": {"t": {"type": "topology"}}}, "space.t: an mlp has no topology"),
    (
        {"space": {"momentum": {"type": "float", "low": 0, "high": 2}}},
        "space.momentum.high: `0 <= momentum <= 0.999999` must hold, but got 2.",
    ),
    ({"training": {"optimizer": "sdg"}}, "training.optimizer: unknown optimizer 'sdg'. Did you mean 'sgd'?"),
    ({"training": {"epoch": 3}}, "training: unknown key 'epoch'. Did you mean 'epochs'?"),
    ({"training": 3}, "training: must be a mapping of optimizer"),
    ({"search": {"samplr": "tpe"}}, "search: unknown key 'samplr'. Did you mean 'sampler'?"),
    (
        {"search": {"sampler": "tpee"}},
        "search.sampler.kind: unknown sampler 'tpee'. Did you mean 'tpe'? Known: capacity, cmaes, random, tpe.",
    ),
    ({"search": {"sampler": 3}}, "search.sampler: must be a mapping of kind, startup, pairs, sigma, lr, but got 3."),
    (
        {"search": {"sampler": {"kind": "tpe", "startup": 0}}},
        "search.sampler.startup: must be a whole number of at least 1, but got 0.",
    ),
    ({"search": {"sampler": {"kind": "random", "startup": 3}}}, "search.sampler: unknown option of random 'startup'."),
    (
        {"search": {"sampler": {"kind": "tpe", "start": 3}}},
        "search.sampler: unknown key 'start'. Did you mean 'startup'?",
    ),
    ({"search": {"pruner": "asha"}}, "search.pruner: unknown pruner 'asha'. Known: none."),
    ({"search": {"batch": 0}}, "search.batch: must be auto or a whole number of at least 1, but got 0."),
    ({"search": {"batch": True}}, "search.batch: must be auto or a whole number of at least 1, but got True."),
    ({"search": {"asynchronous": True}}, "search.asynchronous: asking points without generations is not known yet"),
    ({"search": {"asynchronous": 1}}, "search.asynchronous: must be true or false, but got 1."),
    (
        {"search": {"hypergradient": "descend"}},
        "search.hypergradient.kind: unknown hypergradient 'descend'. Did you mean 'descent'?",
    ),
    ({"search": {"hypergradient": ["descent"]}}, "search.hypergradient: must be a mapping of kind, optimizer"),
    (
        {"search": {"hypergradient": {"kind": "bilevel", "every": 0}}},
        "search.hypergradient.every: must be a whole number of at least 1",
    ),
    (
        {"search": {"hypergradient": {"kind": "bilevel", "evry": 1}}},
        "search.hypergradient: unknown key 'evry'. Did you mean 'every'?",
    ),
    (
        {"search": {"hypergradient": "descent"}},
        "search.hypergradient: 'descent' needs a parameter that it moves, but got none; give one of width.0",
    ),
    (
        {"space": {"width.0": GRADIENT}},
        "space.width.0.moved_by: 'gradient' needs a hypergradient, but got search.hypergradient='none'",
    ),
    (
        {
            "space": {"width.0": GRADIENT, "lr": {"type": "float", "low": 0, "high": 1, "moved_by": "gradient"}},
            "search": {"hypergradient": "bilevel"},
        },
        "space.lr.moved_by: bilevel cannot see lr: it looks at the loss of now",
    ),
    (
        {"space": {"width.0": GRADIENT}, "search": {"hypergradient": "bilevel"}, "realise": "rounded"},
        "realise: a gradient moves fractional sizes, but got 'rounded'",
    ),
    ({"objective": [{"metric": "val_error"}]}, "objective: must be one {metric: ..., mode: min}"),
    ({"objective": {"metric": "val_eror"}}, "objective.metric: unknown metric 'val_eror'. Did you mean 'val_error'?"),
    ({"objective": {"metric": 3}}, "objective.metric: must be one line of at most 200 characters, but got 3."),
    ({"objective": {"mode": "maximise"}}, "objective.mode: unknown mode 'maximise'. Did you mean 'max'?"),
    ({"constraints": {"parameter": {"max": 5}}}, "constraints: unknown bound 'parameter'. Did you mean 'parameters'?"),
    (
        {"constraints": {"latency_ms": {"max": 5}}},
        "constraints.latency_ms: is not known yet; bound parameters or",
    ),
    ({"constraints": {"latency_ms": {"max": 5}}}, "constraints.latency_ms: is not known yet"),
    ({"constraints": {"flops": {"max": 0}}}, "constraints.flops.max: must be a number above 0, but got 0."),
    ({"constraints": {"flops": {}}}, "constraints.flops.max: is missing"),
    ({"constraints": {"flops": 5}}, "constraints.flops: must be a mapping of max, but got 5."),
    ({"constraints": [1]}, "constraints: must be a mapping such as {parameters: {max: 6000}}, but got [1]."),
    ({"replicates": {"folds": 5}}, "replicates.folds: cross-validation is not known yet, so it must be 1, but got 5"),
    ({"replicates": {"seeds": 1.5}}, "replicates.seeds: must be a whole number of at least 1, but got 1.5."),
    ({"realise": "round"}, "realise: unknown way to realise a size 'round'. Did you mean 'rounded'?"),
    ({"budget": None}, "budget: is missing"),
    (
        {"budget": {}},
        "budget: must hold at least one of trials, epochs, flops, device_seconds, wall_seconds, but got none",
    ),
    ({"budget": {"trial": 4, "epochs": 1}}, "budget: unknown key 'trial'. Did you mean 'trials'?"),
    ({"budget": {"trials": 2.5}}, "budget.trials: must be a whole number of at least 1, but got 2.5."),
    ({"budget": {"epochs": 0}}, "budget.epochs: must be a whole number of at least 1, but got 0."),
    ({"budget": {"flops": -1}}, "budget.flops: must be a number above 0, but got -1."),
    ({"budget": {"wall_seconds": float("inf")}}, "budget.wall_seconds: must be a number above 0, but got inf."),
    ({"budget": {"device_seconds": "1h"}}, "budget.device_seconds: must be a number above 0, but got '1h'."),
    ({"resources": {"workers": 0}}, "resources.workers: must be a whole number of at least 1, but got 0."),
    ({"resources": {"cpus_per_worker": 0}}, "resources.cpus_per_worker: must be a number above 0, but got 0."),
    ({"resources": {"gpus_per_worker": -1}}, "resources.gpus_per_worker: must be a number of at least 0, but got -1."),
    ({"resources": {"trial_seconds": 0}}, "resources.trial_seconds: must be a number above 0, but got 0."),
    ({"resources": {"grace_seconds": -1}}, "resources.grace_seconds: must be a number of at least 0, but got -1."),
    ({"resources": {"lanes": "all"}}, "resources.lanes: must be auto or a whole number of at least 1, but got 'all'."),
    ({"seed": -1}, "seed: must be a whole number of at least 0, but got -1."),
    ({"seed": 10**400}, "seed: must be a whole number of at least 0, but got inf."),
]


@pytest.mark.parametrize(("sections", "sentence"), REFUSED, ids=[s[:48] for _, s in REFUSED])
def test_each_rule_says_so(sections, sentence):
    data = {key: value for key, value in {**copy.deepcopy(BASE), **sections}.items() if value is not None}
    found = faults(data)
    assert len(found) == 1, found
    assert sentence in found[0]


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"network": {"kind": "mlp"}}, "network: a plain Python objective has no network of ours"),
        ({"training": {"epochs": 3}}, "training: a plain Python objective trains by itself"),
        (
            {"constraints": {"flops": {"max": 5}}},
            "constraints: bound the cost of a network, but the task",
        ),
        ({"budget": {"epochs": 5}}, "budget: a plain Python objective spends no epochs or flops; add trials"),
        (
            {"search": {"hypergradient": "descent"}},
            "search.hypergradient: 'descent' needs a parameter that it moves, but got none; set it to none",
        ),
        (
            {"space": {"x": {"type": "float", "low": 0, "high": 1, "moved_by": "gradient"}}},
            "space.x.moved_by: only the gates of the network (it has none)",
        ),
    ],
)
def test_each_rule_of_a_python_objective_says_so(sections, sentence):
    found = faults({**PYTHON, **sections})
    assert len(found) == 1, found
    assert sentence in found[0]


@pytest.mark.parametrize("data", [None, 3, "text", [BASE], True])
def test_only_a_mapping_is_a_spec(data):
    assert faults(data)[0].startswith("spec: must be a mapping of name, task, network")


def test_a_bottomless_spec_is_refused():
    data: dict[str, Any] = {}
    data["task"] = data
    assert "at most 20 levels" in faults(data)[0]


def test_ten_faults_are_ten_sentences():
    found = faults(
        changed(
            nmae="x",
            space={
                "width.0": {**WIDTH, "low": 500},
                "lrr": {"type": "float", "low": 0, "high": 1},
                "width.1": GRADIENT,
            },
            training={"optimizer": "sdg", "epochs": 0},
            search={"pruner": "asha"},
            objective={"metric": "val_eror"},
            constraints={"latency_ms": {"max": 1}},
            budget={"trials": -1},
            seed=0.5,
        )
    )
    starts = ["spec: unknown key 'nmae'", "space.width.0:", "training.optimizer:", "training.epochs:", "search.pruner:"]
    starts += ["constraints.latency_ms:", "budget.trials:", "seed:", "objective.metric:", "space.lrr:"]
    assert len(found) == 10, found
    for start in starts:
        assert sum(fault.startswith(start) for fault in found) == 1, start


def test_a_fault_in_one_parameter_does_not_hide_those_of_others():
    found = faults(changed(space={"width.0": {"type": "wdith"}, "lrr": {"type": "float", "low": 0, "high": 1}}))
    assert [fault.split(":")[0] for fault in found] == ["space.width.0.type", "space.lrr"]
