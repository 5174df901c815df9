"""The graph that a search found, as `continua best` draws and writes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_cases import failing, strict

from search_spaces import Topology
from search_spaces.declarations import parameter_from_dict
from search_spaces.topology import edges_kept, grades, undecided
from service.cli import main
from service.graphs import moves_of
from trials.records import Ending, Outcome
from trials.store import Store
from trials.widths import GateKind, Widths

pytestmark = pytest.mark.usefixtures("alone")

GRAPH = """
name: graph
task: uci/digits-images
network: {kind: graphon, width: 4}
space:
  topology: {type: topology, kind: graphon, nodes: 3, coefficients: 2, operations: [conv1, skip]}
training: {batch_size: 128, epochs: 1}
search: {sampler: random, batch: 2}
budget: {trials: 2}
resources: {workers: 1, lanes: 2}
seed: 2
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one search for a graph; not to be written to."""
    path = tmp_path_factory.mktemp("graph")
    (path / "graph.yaml").write_text(GRAPH)
    assert main(["run", str(path / "graph.yaml"), "--store", str(path / "st"), "--executor", "here", "-q"]) == 0
    return path / "st"


def best(store: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["best", "graph", "--store", str(store), "-o", "json", *more]) == 0
    answer: dict[str, object] = strict(capsys.readouterr().out)
    return answer


@pytest.mark.slow
def test_best_draws_its_graph(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = best(found, capsys, "--draw", "graph.svg")
    assert told["drawn"] == "graph.svg"
    text = (tmp_path / "graph.svg").read_text()
    edges = [edge.split(" ", 3)[3].split(", ") for edge in told["graphs"]["topology"].split("; ")]  # type: ignore[index]
    assert edges
    for operation in ("conv1", "skip"):
        assert text.count(f">{operation}</text>") == sum(operation in edge for edge in edges)
    assert f">{told['search_id']}, trial {told['trial']}</text>" in text
    assert "exists already" in failing(["best", "graph", "--store", str(found), "--draw", "graph.svg"], 2, capsys)[0]
    best(found, capsys, "--draw", "graph.svg", "--overwrite")
    assert (tmp_path / "graph.svg").read_text() == text
    assert (
        "Did you mean '.png'" in failing(["best", "graph", "--store", str(found), "--draw", "graph.pdf"], 2, capsys)[0]
    )


def test_best_is_exported_as_the_graph_that_was_found(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = best(found, capsys, "--export", "graph.py")
    text = (tmp_path / "graph.py").read_text()
    for edge in told["graphs"]["topology"].split("; "):  # type: ignore[index]
        source, _, target, operations = edge.split(" ", 3)
        assert f"x{source} -> x{target}  {operations}\n" in text
    assert "x0 = self.stem(x)\n" in text


MOVED = """
name: moved
task: uci/digits-images
network: {kind: fabric, width: 4}
space:
  topology:
    {type: topology, kind: fabric, layers: 2, scales: 2, operations: [conv1, skip, zero], moved_by: gradient}
training: {batch_size: 128, epochs: 1}
search: {sampler: random, batch: 2, hypergradient: {kind: bilevel, warmup: 1, every: 1, lr: 0.1}}
budget: {trials: 2}
resources: {workers: 1, lanes: 2, way: per_lane}
"""


def test_how_far_a_graph_moved_is_told(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "moved.yaml").write_text(MOVED)
    assert main(["run", "moved.yaml", "--store", "st", "--executor", "here", "-q"]) == 0
    assert "\n  moved " in capsys.readouterr().out
    assert main(["best", "moved", "--store", "st", "-o", "json"]) == 0
    told = strict(capsys.readouterr().out)
    parameter, _ = parameter_from_dict("", yaml.safe_load(MOVED)["space"]["topology"])
    assert isinstance(parameter, Topology)
    numbers = torch.tensor([told["asked"][n] for n in parameter.coordinates("topology")], dtype=torch.float64)
    at_start = grades(parameter, numbers, 1.0)
    moves = told["graph_moves"]
    assert moves["edges"] == {
        "start": pytest.approx(edges_kept(parameter, at_start).item()),
        "end": told["metrics"]["edges"],
    }
    assert moves["undecided"] == {
        "start": pytest.approx(undecided(parameter, at_start).item()),
        "end": told["metrics"]["undecided"],
    }
    assert moves["undecided"]["end"] < moves["undecided"]["start"]
    assert main(["show", "moved", "--store", "st"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  moved ")]
    start, end = (
        f"{moves['edges'][when]:.2f} edges, undecided by {moves['undecided'][when]:.2f} bits each, at the {when}"
        for when in ("start", "end")
    )
    assert line.endswith(f" {start}; {end}")
    assert main(["best", "graph", "--store", str(found)]) == 0
    assert "\n  moved " not in capsys.readouterr().out  # no gradient moved that one


def test_where_a_graph_began_is_summed_over_all_that_its_end_is_summed_over() -> None:
    """Of an own network's two topologies the gradient moves one; or the space has one alone."""
    topology, numbers = Topology(nodes=1, operations=("conv1", "skip")), {"a": [0.3, 0.8], "b": [0.5, 0.9]}
    gates = [GateKind(name=name, maximum=2, role="topology", topology=topology) for name in numbers]
    widths = Widths(gates, torch.tensor([[*numbers["a"], *numbers["b"]]]))
    metrics = {name: float(value) for name, value in widths.wiring(widths.coordinates_KP).items()}
    asked = {f"{name}.{i}": number for name, own in numbers.items() for i, number in enumerate(own)}
    point, rounded = {**asked, "a.0": 0.3001}, {name: round(number) for name, number in asked.items()}
    ended = Outcome(
        trial_id="t",
        number=0,
        bundle_id="b",
        attempt=0,
        ending=Ending.COMPLETE,
        point=point,
        metrics=metrics,
        rounded={**rounded, "units": 4},
    )
    still = {"type": "topology", "nodes": 1, "operations": ["conv1", "skip"]}
    moved = {**still, "moved_by": "gradient"}
    moves = moves_of({"a": moved, "b": still}, asked, ended, own=True)
    assert set(moves) == {"edges", "undecided"}
    assert all(start == pytest.approx(end) for start, end in moves.values())
    assert not moves_of({"a": moved}, asked, ended, own=True)
    assert not moves_of({"a": still, "b": moved}, asked, ended, own=True)


def test_a_search_without_a_graph_has_none_to_draw(
    done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, search_id = done
    shutil.copytree(store, tmp_path / "st")
    errors = failing(["best", search_id, "--store", "st", "--draw", "graph.png"], 2, capsys)
    assert errors == ["error: draw: an mlp has no topology; draw that of a cell, graphon or fabric."]
    assert not (tmp_path / "graph.png").exists()
    assert Store.open_for_reading("st").searches() == [search_id]
