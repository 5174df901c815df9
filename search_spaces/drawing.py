"""A topology as a picture and as a line: nodes in their order, edges by their operations, as thick as their grades.

    >>> draw(topology, grades, Path("topology.png"), title="digits, trial 7")
    >>> words(topology, topology.hard(numbers))
    '0 -> 2 conv3, skip; 2 -> 3 max_pool'

Of a free topology or a graphon the nodes stand in a row; what has weights arches above it, what has none (pools and
dashed skips) below. A fabric is its grid of layers and scales. Grades may be real: what is less than half there is
drawn thin and pale, and has no label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.faults import Invalid, unknown
from search_spaces.wiring import OPERATIONS, Edge, Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
COLOURS = dict(
    zip(
        OPERATIONS,  # after Okabe & Ito (2008), whom the colour-blind can tell apart; skips grey
        ("#0072b2", "#3f97d6", "#d55e00", "#882255", "#00886b", "#bf8600", "#b0578d", "#6b6b6b", "#cccccc"),
        strict=True,
    )
)
WITHOUT_WEIGHTS = ("max_pool", "avg_pool", "skip")
FAINT = 0.02  # what has a lesser grade is not drawn
INCH = 1.25  # between nodes
RADIUS = 0.15  # of a node, where 1 is between nodes
STEP = 0.26  # between arches, in the same unit
LETTER = 0.075  # of the title, in the same unit
INK, PAPER, PALE = "#222222", "white", "#bbbbbb"


@dataclass(frozen=True)
class Strand:
    """A unit as a line: a cubic Bezier curve, and where its label stands."""

    edge: Edge
    operation: str
    grade: float
    curve: tuple[tuple[float, float], ...]
    label: tuple[float, float]


def words(topology: Topology, kept: Iterable[int]) -> str:
    """The graph of the kept units in a line."""
    on_edge: dict[str, list[str]] = {}
    for unit in sorted(kept):
        edge, operation = topology.units[unit]
        ends = f"{node_name(topology, edge.source)} -> {node_name(topology, edge.target)}"
        on_edge.setdefault(ends, []).append(operation)
    return "; ".join(f"{ends} {', '.join(operations)}" for ends, operations in on_edge.items())


def node_name(topology: Topology, node: int) -> str:
    """A node's index; of a fabric's, its layer and scale."""
    if topology.kind != "fabric":
        return str(node)
    return f"l{node // topology.scales}s{node % topology.scales}"


def path_faults(path: Path, *, overwrite: bool = False) -> list[str]:
    """What keeps a drawing from being written to a path."""
    faults = []
    if path.suffix not in FORMATS:
        faults.append(unknown("draw", path.suffix or path.name, FORMATS, "format, named by a file's ending,"))
    if not path.parent.is_dir():
        faults.append(f"draw: must name a file in a directory that exists, but there is no {path.parent}; make it.")
    if path.exists() and not overwrite:
        faults.append(f"draw: {path} exists already; name another file, or pass --overwrite (overwrite=True).")
    return faults


def draw(topology: Topology, grades: Sequence[float], path: Path, title: str = "") -> None:
    """Draw a topology at the grades of its units, [U], as PNG or SVG by the path's ending; what stood there is lost.

    Raises:
        Invalid: for a path that is none, or grades of another number or outside 0 .. 1.
    """
    if faults := path_faults(path, overwrite=True) + _grade_faults(topology, grades):
        raise Invalid(faults)
    import matplotlib
    from matplotlib.figure import Figure

    place = _grid(topology) if topology.kind == "fabric" else _row(topology)
    strands = _woven(topology, grades, place) if topology.kind == "fabric" else _arches(topology, grades, place)
    (left, right), (low, high) = _bounds(strands, place, title)
    # as text, not as outlines: it can be searched, and the file is a tenth as large
    with matplotlib.rc_context({"svg.hashsalt": "continua", "svg.fonttype": "none"}):
        figure = Figure(figsize=(INCH * (right - left), INCH * (high - low)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(left, right), ylim=(low, high), aspect="equal")
        axes.set_axis_off()
        _draw_nodes(axes, topology, strands, place)
        for strand in sorted(strands, key=lambda strand: strand.grade):
            _draw_strand(axes, strand)
        _draw_words(axes, topology, strands, title, place)
        figure.savefig(path, dpi=150, facecolor=PAPER, metadata={"Date": None} if path.suffix == ".svg" else None)


def _grade_faults(topology: Topology, grades: Sequence[float]) -> list[str]:
    units = len(topology.units)
    if len(grades) != units:
        return [f"draw: must have a grade for each of {units} units, but got {len(grades)} grades."]
    return [f"draw: grades must lie in [0, 1], but got {grade}." for grade in grades if not 0 <= grade <= 1][:1]


# -- where things are --------------------------------------------------------------------------------------------------

Place = dict[int, tuple[float, float]]


def _row(topology: Topology) -> Place:
    return {node: (float(node), 0.0) for node in range(topology.nodes + 1)}


def _grid(topology: Topology) -> Place:
    nodes = range((topology.layers + 1) * topology.scales)
    return {node: (1.9 * (node // topology.scales), -1.4 * (node % topology.scales)) for node in nodes}


def _drawn(topology: Topology, grades: Sequence[float]) -> dict[Edge, list[tuple[str, float]]]:
    """What stands on each edge."""
    found: dict[Edge, list[tuple[str, float]]] = {}
    for (edge, operation), grade in zip(topology.units, grades, strict=True):
        if grade >= FAINT and operation != "zero":
            found.setdefault(edge, []).append((operation, grade))
    return found


def _arches(topology: Topology, grades: Sequence[float], place: Place) -> list[Strand]:
    """Arches over the row, each as high as those inside it need; of one edge, one over the other."""
    strands: list[Strand] = []
    for below in (False, True):
        tops: dict[Edge, float] = {}
        drawn = _drawn(topology, grades)
        for edge in sorted(drawn, key=lambda edge: (edge.target - edge.source, edge.source)):
            own = [(o, g) for o, g in drawn[edge] if (o in WITHOUT_WEIGHTS) == below]
            inside = [top for e, top in tops.items() if edge.source <= e.source and e.target <= edge.target]
            height = max(inside, default=0.0)
            for operation, grade in own:
                height += STEP if height else 1.15 * STEP
                sign = -1 if below else 1
                curve = _arch(place[edge.source][0], place[edge.target][0], sign * height)
                strands.append(Strand(edge, operation, grade, curve, _at(curve, 0.5)))
            if own:
                tops[edge] = height
    return strands


def _arch(start: float, end: float, height: float) -> tuple[tuple[float, float], ...]:
    bend = min(0.12 * (end - start), 0.25)
    return ((start, 0.0), (start + bend, height * 4 / 3), (end - bend, height * 4 / 3), (end, 0.0))


def _woven(topology: Topology, grades: Sequence[float], place: Place) -> list[Strand]:
    """Lines between the layers, those of one edge side by side; labels stand before edges cross."""
    strands = []
    for edge, own in _drawn(topology, grades).items():
        (x0, y0), (x1, y1) = place[edge.source], place[edge.target]
        for i, (operation, grade) in enumerate(own):
            aside = (i - (len(own) - 1) / 2) * -0.2
            curve = ((x0, y0), (x0 + 0.5, y0 + 1.33 * aside), (x1 - 0.5, y1 + 1.33 * aside), (x1, y1))
            label = _at(curve, 0.6 if edge.scale_from == edge.scale_to else 0.35)
            strands.append(Strand(edge, operation, grade, curve, label))
    return strands


def _at(curve: Sequence[tuple[float, float]], t: float) -> tuple[float, float]:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    x, y = (sum(w * point[i] for w, point in zip(weights, curve, strict=True)) for i in (0, 1))
    return x, y


Bounds = tuple[tuple[float, float], tuple[float, float]]


def _bounds(strands: Sequence[Strand], place: Place, title: str) -> Bounds:
    """Left and right, bottom and top: with room for the words at the sides, and the title above."""
    points = [*place.values(), *(_at(strand.curve, 0.5) for strand in strands)]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = min(xs) - (1.3 if len({y for _, y in place.values()}) > 1 else 0.8), max(xs) + 0.8
    more = max(0.0, LETTER * len(title) - (right - left)) / 2
    return (left - more, right + more), (min(ys) - 0.4, max(ys) + (0.7 if title else 0.45))


# -- ink ---------------------------------------------------------------------------------------------------------------


def _draw_strand(axes: Axes, strand: Strand) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    there = strand.grade >= 0.5
    colour = COLOURS[strand.operation]
    style: dict[str, Any] = {"linestyle": (0, (3, 1.6))} if strand.operation == "skip" else {}
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    line = PathPatch(
        Curve(strand.curve, codes),
        fill=False,
        edgecolor=colour,
        linewidth=0.4 + (1.0 if strand.operation == "skip" else 2.0) * strand.grade,
        alpha=0.25 + 0.75 * strand.grade if there else 0.35,
        zorder=2 + strand.grade,
        **style,
    )
    axes.add_patch(line)
    if there:
        text = strand.operation if strand.grade == 1 else f"{strand.operation} {strand.grade:.2f}".replace("0.", ".")
        box = {"boxstyle": "round,pad=0.12", "facecolor": PAPER, "edgecolor": "none"}
        axes.text(*strand.label, text, color=colour, fontsize=8, ha="center", va="center", bbox=box, zorder=4)


def _draw_nodes(axes: Axes, topology: Topology, strands: Sequence[Strand], place: Place) -> None:
    from matplotlib.patches import Circle

    used = {topology.input, topology.output} | {
        node for strand in strands if strand.grade >= 0.5 for node in (strand.edge.source, strand.edge.target)
    }
    ends = {topology.input: INK, topology.output: INK}
    for node, (x, y) in place.items():
        ink = INK if node in used else PALE
        face = ends.get(node, PAPER)
        axes.add_patch(Circle((x, y), RADIUS, facecolor=face, edgecolor=ink, linewidth=1.4, zorder=6))
        if topology.kind != "fabric":
            colour = PAPER if node in ends else ink
            axes.text(x, y, str(node), color=colour, fontsize=9, ha="center", va="center", zorder=7)


def _draw_words(axes: Axes, topology: Topology, strands: Sequence[Strand], title: str, place: Place) -> None:
    for node, text, side in ((topology.input, "input", -1), (topology.output, "output", 1)):
        x, y = place[node]
        axes.text(x + side * 1.4 * RADIUS, y, text, fontsize=9, ha="right" if side < 0 else "left", va="center")
    if topology.kind == "fabric":
        for layer in range(topology.layers + 1):
            x, y = place[layer * topology.scales]
            axes.text(x, y + 0.3, f"layer {layer}", fontsize=8, color=INK, ha="center")
        for scale in range(topology.scales):
            x, y = place[scale]
            axes.text(x - 1.2, y, f"scale {scale}", fontsize=8, color=INK, va="center")
    if title:
        axes.text(0.5, 0.99, title, transform=axes.transAxes, fontsize=10, ha="center", va="top", color=INK)
