"""What a spec means, without running it: `continua run SPEC --dry-run`.

The resolved spec as YAML that `run` reads back, with what follows from it as comments.
"""

from __future__ import annotations

from typing import Any

import yaml

from search_spaces import Topology
from service import show as out
from service.rules import spec_notes
from service.spec import SearchSpec
from trials.tasks import Task


def print_dry_run(spec: SearchSpec, task: Task | Any, output: str) -> None:
    """The spec and its consequences, as YAML or as one JSON object."""
    facts: dict[str, Any] = {
        "batch": spec.batch_size(),
        "notes": [*getattr(task, "notes", ()), *spec_notes(spec, task)],
    }
    if spec.network is not None and isinstance(task, Task):
        facts |= {"data": _data(task), "smallest": _network(spec, task, False), "largest": _network(spec, task, True)}
    if output == "json":
        out.put(out.as_json({"spec": spec.to_dict(), **facts}) + "\n")
        return
    comments = [f"a generation: {out.counted(facts['batch'], 'point')}"]
    for name in ("smallest", "largest"):
        if name in facts:
            network = facts[name]
            graphs = [name for name, p in spec.space.parameters.items() if isinstance(p, Topology)]
            told = {gate: out.counted(n, "edge") if gate in graphs else n for gate, n in network["sizes"].items()}
            sizes = ", ".join(f"{gate} {size}" for gate, size in told.items()) or "no widths"
            costs = f"{out.counted(network['parameters'], 'parameter')}, {network['flops']:,} FLOPs"
            comments.append(f"{name} network: {sizes}; {costs}, {network['activation_bytes']:,} bytes of activations")
    if "data" in facts:
        comments.append(f"data: {out.values(facts['data'])}")
    comments += [f"note: {note}" for note in facts["notes"]]
    text = yaml.safe_dump(spec.to_dict(), sort_keys=False, allow_unicode=True)
    out.put(text + "".join(f"# {out.escaped(comment)}\n" for comment in comments))


def _data(task: Task) -> dict[str, Any]:
    rows = {split: len(getattr(task, split)) for split in ("train", "outer", "selection", "test")}
    return {"kind": task.kind, "inputs": task.inputs, "outputs": task.outputs, **rows}


def _network(spec: SearchSpec, task: Task, largest: bool) -> dict[str, Any]:
    """The network at the cheap or dear ends of all its numbers, whole, bounds aside; FLOPs of one example's forward
    pass."""
    network = spec.network
    assert network is not None
    point = network.rounded(network.ends(spec.space)[largest])
    sizes = {gate: n if isinstance(n, int) else len(n) for gate, n in network.whole_sizes(point).items()}
    costs = network.costs(task.shape, task.outputs).of(network.named(network.sizes(point), whole=True))
    return {"sizes": sizes, **{name: int(cost) for name, cost in costs.items()}}
