"""What the command line prints: data on stdout as a table, JSON, CSV or Arrow; everything else on stderr.

    >>> print_rows(pa.table({"search_id": ["digits-3fa2b1"], "best": [0.0312]}), "jsonl")
    {"search_id": "digits-3fa2b1", "best": 0.0312}

JSON has no NaN: numbers that are not finite are written as the text "NaN", "Infinity" and "-Infinity" (as Protocol
Buffers do), in CSV too, so that a diverged metric is not mistaken for one that was never measured, which is null. Text
that could steer a terminal is escaped. A reader that goes away (`| head`) ends the printing, not the program.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TextIO

from search_spaces.faults import Invalid
from service.graphs import without_numbers

if TYPE_CHECKING:
    import pyarrow as pa

Stream = Literal["stdout", "stderr"]


# -- streams -----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One line on stderr. Nobody reading it is no reason to end a search."""
    try:
        sys.stderr.write(escaped(text) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _discard(sys.stderr)


def put(text: str) -> None:
    """Text on stdout, at once. Raises OSError when it cannot be written, but not when nobody reads it any more."""
    put_bytes(text.encode("utf-8", "backslashreplace"))


def put_bytes(data: bytes) -> None:
    """The same for bytes."""
    try:
        sys.stdout.flush()
        rest = memoryview(data)
        while len(rest):  # an unbuffered stdout (PYTHONUNBUFFERED) may take a part
            rest = rest[sys.stdout.buffer.write(rest) or 0 :]
        sys.stdout.buffer.flush()
    except OSError as error:
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "stdout") from error


def _discard(stream: TextIO) -> None:
    """Let a stream lead nowhere from now on: what it still buffers would fail again when the program ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def console_for(stream: Stream) -> Any:
    """A rich console (which honours NO_COLOR) where the stream is a terminal that can move its cursor, else None."""
    file = getattr(sys, stream)
    if not file.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
        return None
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, emoji=False)


def escaped(text: str) -> str:
    """The text without what could steer a terminal or break its line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# -- values ------------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Decimal):  # DuckDB's sums of whole numbers are of this type
        return int(value) if value.is_finite() and value == value.to_integral_value() else plain(float(value))
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)


def as_json(value: Any) -> str:
    """A value as one line of valid JSON."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    value = plain(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return escaped(value) if isinstance(value, str) else escaped(as_json(value))


def counted(number: int, noun: str) -> str:
    """A count and its noun: 1 edge, 2 edges."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def moment(seconds: float | None) -> str:
    """Unix seconds as a date and time (UTC)."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def values(point: Mapping[str, Any]) -> str:
    """A point in one line."""
    return ", ".join(f"{name}={cell(value)}" for name, value in point.items()) or "-"


def command(*words: str) -> str:
    """A command line that a shell reads back to those words."""
    return shlex.join(["continua", *words])


# -- tables ------------------------------------------------------------------------------------------------------------


def print_rows(table: pa.Table, output: str) -> None:
    """A table as `output`: table, json (one list), jsonl (an object a line), csv or arrow (an IPC stream).

    Raises:
        Invalid: when Arrow's bytes would go to a terminal.
    """
    if output == "arrow":
        put_bytes(_arrow(table))
        return
    names = _distinct(table.column_names)
    rows = [list(row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]
    if output == "json":
        put(as_json([dict(zip(names, row, strict=True)) for row in rows]) + "\n")
    elif output == "jsonl":
        put("".join(as_json(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    elif output == "csv":
        put(_csv(names, rows))
    else:
        _print_table(names, rows)


def _arrow(table: pa.Table) -> bytes:
    if sys.stdout.isatty():
        raise Invalid(["output: arrow is binary, but stdout is a terminal; redirect it to a file or a program."])
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, a repeated one numbered: an object has each key once."""
    found: list[str] = []
    for name in names:
        free = name
        for n in range(1, len(names) + 1):
            if free not in found:
                break
            free = f"{name}_{n}"
        found.append(free)
    return found


def _csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        flat = [plain(value) for value in row]
        writer.writerow([v if v is None or isinstance(v, str | float) else as_json(v) for v in flat])
    return text.getvalue()


def _print_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [[cell(value) for value in row] for row in rows]
    columns = zip(*rows, strict=True) if rows else [[] for _ in names]
    right = [all(value is None or isinstance(value, int | float | Decimal) for value in column) for column in columns]
    if console := console_for("stdout"):
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, to_right in zip(names, right, strict=True):
            table.add_column(Text(escaped(name)), justify="right" if to_right else "left", overflow="fold")
        for line in cells:
            table.add_row(*map(Text, line))
        _through(console, table)
        return
    lines = [[escaped(name) for name in names], *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    put("".join("  ".join(map(_justified, line, widths, right)).rstrip() + "\n" for line in lines))


def _justified(text: str, width: int, to_right: bool) -> str:
    return text.rjust(width) if to_right else text.ljust(width)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    pairs = [(name, escaped(value)) for name, value in facts]
    width = max(len(name) for name, _ in pairs)
    if console := console_for("stdout"):
        from rich.text import Text

        text = Text("\n").join(Text.assemble((name.ljust(width), "bold"), "  ", value) for name, value in pairs)
        _through(console, text)
    else:
        put("".join(f"{name.ljust(width)}  {value}\n" for name, value in pairs))


def _through(console: Any, renderable: Any) -> None:
    with console.capture() as captured:
        console.print(renderable)
    put(captured.get())


# -- searches ----------------------------------------------------------------------------------------------------------


def print_summary(found: Mapping[str, Any], output: str, *, spec: bool) -> None:
    """A search's `summary`, with its spec or without."""
    if output == "json":
        put(as_json({key: value for key, value in found.items() if spec or key not in ("spec", "labels")}) + "\n")
        return
    best, spent, goal = found["best"], found["spent"], found["goal"]
    endings = ", ".join(f"{count} {ending}" for ending, count in found["trials"].items()) or "none ended"
    facts = [
        ("search", found["search_id"]),
        ("name", found["name"]),
        ("state", found["state"] + _owner(found["owner"]) + (f": {found['why']}" if found["why"] else "")),
        *(_spec_facts(found) if spec else []),
        ("goal", values(goal) + (f" (version {found['goal_version']})" if found.get("goal_version") else "")),
        ("trials", f"{endings} of {found['asked']} asked"),
        *(_best_facts(best, found["metric"]) if best else [("best", "-")]),
        ("device", f"{spent['device_seconds']:.1f} s, {spent['wall_seconds']:.1f} s on the wall"),
        ("FLOPs", f"{spent['flops']:.4g} live, {spent['executed_flops']:.4g} executed"),
        ("lanes", _lanes(found["lanes"], found["packed"])),
    ]
    print_facts(facts)


def _lanes(most: int | None, packed: int) -> str:
    """How many trials may train as one program, and how many of those that ended did."""
    if most is None or packed in (0, most):
        return cell(most)
    return f"{most} at most, {packed} in the largest bundle"


def print_best(found: Mapping[str, Any], output: str) -> None:
    """A search's `best_trial`."""
    if output == "json":
        put(as_json(found) + "\n")
        return
    facts = [("search", found["search_id"]), ("state", found["state"]), *_best_facts(found, found["metric"])]
    exported = found.get("exported")
    made = [("exported", exported["path"]), ("  it reads", values(exported["reads"]))] if exported else []
    print_facts([*facts, ("metrics", values(found["metrics"])), *made])


def _owner(owner: Mapping[str, Any] | None) -> str:
    return f" (process {owner['pid']} on {owner['host']}, since {moment(owner['since'])} UTC)" if owner else ""


def _spec_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    spec, search = found["spec"], found["spec"].get("search", {})
    shown = {name: _range(parameter) for name, parameter in spec.get("space", {}).items()}
    method = search.get("hypergradient", {}).get("kind", "none")
    bounds = {name: bound["max"] for name, bound in spec.get("constraints", {}).items()}
    return [
        ("created", f"{moment(found['created'])} UTC"),
        ("task", cell(spec.get("task"))),
        ("network", values(spec.get("network") or {})),
        *((f"space.{name}", text) for name, text in shown.items()),
        ("sampler", search.get("sampler", {}).get("kind", "-") + ("" if method == "none" else f", moved by {method}")),
        *([("at most", values(bounds))] if bounds else []),
        ("seed", cell(spec.get("seed"))),
        *([("labels", values(found["labels"]))] if found["labels"] else []),
    ]


def _range(parameter: Mapping[str, Any]) -> str:
    span = f"{cell(parameter['low'])} to {cell(parameter['high'])}" if "low" in parameter else ""
    rest = {key: value for key, value in parameter.items() if key not in ("type", "low", "high")}
    return " ".join([str(parameter.get("type", "")), span, values(rest) if rest else ""]).strip()


def _best_facts(best: Mapping[str, Any], metric: str | None) -> list[tuple[str, str]]:
    parameters = best["parameters"]
    size = "" if parameters is None else f" ({parameters:,.0f} parameters)"
    moved, graphs = best["asked"] != best["point"], best.get("graphs") or {}
    asked, point, rounded = (values(without_numbers(best[name], graphs)) for name in ("asked", "point", "rounded"))
    return [
        ("best", f"{metric} {cell(best['value'])} (trial {best['trial']})"),
        *([("  asked", asked), ("  ended at", point)] if moved else [("  point", point)]),
        ("  rounded", rounded + size),
        *((f"  {name}", words) for name, words in graphs.items()),
        *([("  moved", _moves(best["graph_moves"]))] if best.get("graph_moves") else []),
        ("  scores", _scores(best)),
    ]


def _moves(moves: Mapping[str, Mapping[str, float]]) -> str:
    """How many edges a graph had, and how undecided they were, before and after a gradient moved it."""
    at = [
        f"{moves['edges'][when]:.2f} edges, undecided by {moves['undecided'][when]:.2f} bits each, {words}"
        for when, words in (("start", "at the start"), ("end", "at the end"))
    ]
    return "; ".join(at)


def _scores(best: Mapping[str, Any]) -> str:
    """What the network is worth at its real sizes, at whole ones, and trained again from scratch at these."""
    found = [f"relaxed {cell(best['value'])}"]
    if best.get("rounded_value") is not None:
        found.append(f"rounded {cell(best['rounded_value'])}")
    if again := best.get("retrained"):
        spread = f"{cell(again['mean'])}, standard deviation {cell(again['std'])},"
        found.append(f"retrained {spread} on the test rows ({counted(again['seeds'], 'seed')})")
    return ", ".join(found)
