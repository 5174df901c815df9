"""Pictures of topologies show each edge that is kept, with the same bytes every time; and graphs in words."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
from matplotlib.image import imread

from search_spaces import Invalid
from search_spaces.drawing import COLOURS, draw, path_faults, words
from search_spaces.wiring import OPERATIONS, Topology

FREE = Topology(nodes=4, operations=("conv3", "max_pool", "skip", "zero"))
SMOOTH = Topology(kind="graphon", nodes=12, operations=OPERATIONS)
WOVEN = Topology(kind="fabric", layers=4, scales=3, operations=("separable", "avg_pool", "skip"))
TOPOLOGIES = {"free": FREE, "graphon": SMOOTH, "fabric": WOVEN}


def spread(topology: Topology) -> list[float]:
    """Numbers that keep some units and not others."""
    return [(0.37 + 0.618 * i) % 1 for i in range(topology.size)]


def hard(topology: Topology) -> tuple[tuple[int, ...], list[float]]:
    """What is kept, and the grades of it."""
    kept = topology.hard(spread(topology))
    return kept, [float(unit in kept) for unit in range(len(topology.units))]


def texts(path: Path) -> list[str]:
    root = ET.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def lines(path: Path) -> Counter[str]:
    """How many lines that fill nothing there are, by colour."""
    strokes = (element.get("style", "") for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}path"))
    styles = [dict(item.split(": ", 1) for item in style.split("; ")) for style in strokes if "fill: none" in style]
    return Counter(style["stroke"] for style in styles)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_edge_that_is_kept_is_drawn_and_labelled_and_no_other(name: str, tmp_path: Path) -> None:
    topology = TOPOLOGIES[name]
    kept, grades = hard(topology)
    draw(topology, grades, tmp_path / "graph.svg", title="found <here> & now")
    found = Counter(texts(tmp_path / "graph.svg"))
    wanted = Counter(topology.units[unit][1] for unit in kept)
    assert {operation: found[operation] for operation in OPERATIONS} == {o: wanted[o] for o in OPERATIONS}
    assert found["input"] == found["output"] == found["found <here> & now"] == 1
    assert lines(tmp_path / "graph.svg") == {COLOURS[o]: count for o, count in wanted.items()}
    own = [f"layer {i}" for i in range(5)] + [f"scale {i}" for i in range(3)]
    nodes = own if name == "fabric" else [str(node) for node in range(topology.nodes + 1)]
    assert all(found[node] == 1 for node in nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_picture_is_whole_and_has_ink(name: str, tmp_path: Path) -> None:
    draw(TOPOLOGIES[name], hard(TOPOLOGIES[name])[1], tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(tmp_path / "graph.png")[..., :3]
    assert min(pixels.shape[:2]) > 200
    dark = pixels.min(-1) < 0.5
    assert 0.005 < dark.mean() < 0.3
    edges = [dark[0], dark[-1], dark[:, 0], dark[:, -1]]
    assert not any(side.any() for side in edges), "nothing is cut off"


def test_grades_between_are_thinner_and_only_halves_are_labelled(tmp_path: Path) -> None:
    topology = Topology(nodes=2, operations=("conv3", "skip"))  # edges 0 -> 1, 0 -> 2, 1 -> 2
    draw(topology, [0.25, 0.75, 0.5, 0.001, 1.0, 0.0], tmp_path / "soft.svg")
    assert {text for text in texts(tmp_path / "soft.svg") if text[0] in "cs"} == {"skip .75", "conv3 .50", "conv3"}
    assert lines(tmp_path / "soft.svg") == {COLOURS["conv3"]: 3, COLOURS["skip"]: 1}
    text = (tmp_path / "soft.svg").read_text()
    widths = [
        line.partition("stroke-width: ")[2].partition(";")[0] for line in text.splitlines() if "fill: none" in line
    ]
    assert len(set(widths)) == 4
    assert text.count("stroke-dasharray") == 1  # the skip


@pytest.mark.slow
def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    """In another process, too."""
    grades = hard(WOVEN)[1]
    draw(WOVEN, grades, tmp_path / "here.svg")
    script = f"""
from pathlib import Path
from search_spaces.drawing import draw
from search_spaces.wiring import Topology
draw(Topology(kind="fabric", layers=4, scales=3, operations={WOVEN.operations!r}), {grades!r}, Path("there.svg"))
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env={"MPLCONFIGDIR": str(tmp_path)})
    assert (tmp_path / "here.svg").read_bytes() == (tmp_path / "there.svg").read_bytes()
    draw(WOVEN, [1.0] * len(WOVEN.units), tmp_path / "here.svg")  # what stood there is replaced
    assert (tmp_path / "here.svg").read_bytes() != (tmp_path / "there.svg").read_bytes()


def test_a_graph_in_words() -> None:
    kept = [FREE.units.index(unit) for unit in FREE.units if (unit[0].source, unit[0].target) in ((0, 2), (2, 4))]
    assert words(FREE, [kept[0], kept[2], kept[5]]) == "0 -> 2 conv3, skip; 2 -> 4 max_pool"
    first, last = 0, len(WOVEN.units) - 1
    assert words(WOVEN, [last, first]) == "l0s0 -> l1s0 separable; l3s2 -> l4s2 skip"
    assert words(FREE, []) == ""


def test_faults(tmp_path: Path) -> None:
    (tmp_path / "there.svg").write_text("mine")
    (fault,) = path_faults(tmp_path / "there.svg")
    assert "exists already" in fault
    assert path_faults(tmp_path / "there.svg", overwrite=True) == []
    for path, said in (("graph.pdf", "'.pdf'"), ("graph", "'graph'"), ("no/graph.png", "there is no")):
        with pytest.raises(Invalid, match=said):
            draw(FREE, hard(FREE)[1], tmp_path / path)
    for grades, said in (
        ([0.5], "a grade for each of 40 units, but got 1 grades"),
        ([1.5] * 40, r"must lie in \[0, 1\], but got 1.5"),
        ([math.nan] * 40, "but got nan"),
    ):
        with pytest.raises(Invalid, match=said):
            draw(FREE, grades, tmp_path / "graph.png")
    assert [path.name for path in tmp_path.iterdir()] == ["there.svg"]
