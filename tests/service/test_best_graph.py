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
from trials.store import Store

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


def test_a_search_without_a_graph_has_none_to_draw(
    done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, search_id = done
    shutil.copytree(store, tmp_path / "st")
    errors = failing(["best", search_id, "--store", "st", "--draw", "graph.png"], 2, capsys)
    assert errors == ["error: draw: an mlp has no topology; draw that of a cell, graphon or fabric."]
    assert not (tmp_path / "graph.png").exists()
    assert Store.open_for_reading("st").searches() == [search_id]
