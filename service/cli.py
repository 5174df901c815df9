"""The command line: one small function a command; data on stdout, everything else on stderr.

    $ continua run digits.yaml --set budget.trials=64
    $ continua query "SELECT number, value FROM trials ORDER BY value LIMIT 3" -o csv

Exit codes: 0 ok, 1 error, 2 usage (a faulty spec, a statement that is none), 3 not found, 5 conflict (a live owner),
6 the search failed, 130 interrupted. Whatever is heavy is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search_spaces.faults import Invalid
from service import show as out
from service.ending import FAILED, INTERRUPTED, resuming, verdict
from service.show import say

if TYPE_CHECKING:
    from service.spec import SearchSpec
    from service.summary import WitnessStore
    from trials.tasks import Task

ERROR, USAGE, NOT_FOUND, CONFLICT = 1, 2, 3, 5
MOST_WARNINGS = 5  # damaged files that are named one by one


class Whole(StrEnum):
    """How one object is printed."""

    table = "table"
    json = "json"


class Rows(StrEnum):
    """How rows are printed."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    arrow = "arrow"


class Executor(StrEnum):
    """Where trials are trained: worker processes, Ray, or this process."""

    local = "local"
    ray = "ray"
    here = "here"


StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="DIR", help="The store [default: see `continua config show`].")
]
WholeOption = Annotated[Whole, typer.Option("-o", "--output", help="How to print it.")]
RowsOption = Annotated[
    Rows, typer.Option("-o", "--output", help="How to print it. JSON and CSV say NaN and infinities as text.")
]
Search = Annotated[str, typer.Argument(metavar="ID", help="The search, or the beginning of its id.")]

app = typer.Typer(name="continua", rich_markup_mode=None, pretty_exceptions_enable=False)
config = typer.Typer(rich_markup_mode=None, help="The settings.")
app.add_typer(config, name="config")


@app.callback(invoke_without_command=True)
def _continua(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> int:
    """Hyperparameter optimisation in which width, stride, depth and topology are real numbers."""
    if version:
        from importlib.metadata import version as installed

        out.put(f"continua {installed('continua')}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(USAGE)
    return 0


# -- run ---------------------------------------------------------------------------------------------------------------


@app.command()
def run(
    spec: Annotated[Path | None, typer.Argument(metavar="SPEC", help="A spec in YAML or JSON.")] = None,
    store: StoreOption = None,
    executor: Annotated[Executor, typer.Option(help="Where trials are trained.")] = Executor.local,
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with a search instead.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: budget.trials=64.")
    ] = None,
    output: WholeOption = Whole.table,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the spec, say what it means, run nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")] = False,
) -> int:
    """Run a search here and wait for its end."""
    if (spec is None) == (resume is None):
        raise Invalid(["run: needs either SPEC, a file, or --resume ID; " + ("got both." if spec else "got neither.")])
    if resume is not None and (overrides or dry_run):
        raise Invalid(["run: --resume takes the search as it is; leave out --set and --dry-run."])
    from service.settings import store_root

    root = store_root(store)[0]
    if resume is not None:
        from service.summary import WitnessStore

        return _driven(root, WitnessStore(root).named(resume).id, None, executor, output, quiet)
    assert spec is not None
    from service.documents import document
    from service.spec import check

    if "arms" in document(spec):
        raise Invalid(
            [f"{spec}: must be a search, but is a comparison; run it with: {out.command('compare', str(spec))}"]
        )
    with contextlib.redirect_stdout(sys.stderr):  # the user's own modules may print
        checked, task = check(spec, overrides or ())
    if dry_run:
        from service.dry import print_dry_run

        print_dry_run(checked, task, output)
        return 0
    from service.rules import spec_notes

    for note in () if quiet else [*getattr(task, "notes", ()), *spec_notes(checked, task)]:
        say(f"note: {note}")
    return _driven(root, "", (checked, task, spec.parent.absolute()), executor, output, quiet)


def _driven(
    root: Path,
    search_id: str,
    new: tuple[SearchSpec, Task | Any, Path] | None,
    executor: Executor,
    output: Whole,
    quiet: bool,
) -> int:
    """Run a new search, or the one with that id; print what it came to and return the exit code."""
    from service.live import Live
    from service.summary import WitnessStore, summary
    from trials.store import Held, Store

    store = Store(root)  # one that cannot be written says so before the slow imports
    from service import driver
    from service.controller import SearchFailed

    name = search_id or driver.new_search_id(new[0].name if new else "")
    again = resuming(name, root, executor.value)
    result, why = None, ""
    with Live(quiet=quiet) as live, _stoppable(again) as stop, contextlib.redirect_stdout(sys.stderr):
        common: dict[str, Any] = {"executor": executor.value, "watch": live.show, "interrupted": stop}
        try:
            if new is None:
                result = driver.resume(store, name, **common)
            else:
                result = driver.run(new[0], new[1], store, search_id=name, directory=new[2], **common)
        except SearchFailed as error:
            why = str(error)
        except Exception as error:
            if not isinstance(error, Held | Invalid) and name in store.searches():
                error.add_note(f"go on with: {again}")
            raise
    witness = WitnessStore(root)
    found = summary(witness.search(name))
    _warn_of_damage(witness)
    if result is not None:
        found["lanes"] = result.lanes
        why = result.progress.failure or ""
    out.print_summary(found, output.value, spec=False)
    return verdict(found, result, why, again, root, quiet)


@contextlib.contextmanager
def _stoppable(again: str) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second one ends the process at once."""
    stop = threading.Event()

    def handle(*_: object) -> None:
        # print may be what was interrupted, and cannot be entered twice
        with contextlib.suppress(OSError):
            if stop.is_set():
                os.write(2, f"\x1b[?25h\n{out.escaped(again)}\n".encode() if os.isatty(2) else f"{again}\n".encode())
            else:
                os.write(2, b"\nstopping: nothing new begins; once more ends it at once. Then go on, or again, with:\n")
                os.write(2, f"{again}\n".encode())
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def compare(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A comparison in YAML or JSON.")],
    store: StoreOption = None,
    executor: Annotated[Executor, typer.Option(help="Where trials are trained.")] = Executor.local,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: repeats=2.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw pictures there.")] = None,
    output: WholeOption = Whole.table,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> int:
    """Compare several ways to search, at equal budgets, and judge them."""
    from service.comparing import print_report, run_comparison
    from service.settings import store_root

    root = store_root(store)[0]
    with _stoppable(out.command("compare", str(spec), "--store", str(root))) as stop:
        found = run_comparison(spec, overrides or (), root, executor.value, stop, quiet=quiet)
    if found is None:
        return INTERRUPTED
    print_report(root, found, pictures, output.value)
    return 0


@app.command()
def report(
    comparison: Annotated[str, typer.Argument(metavar="ID", help="A comparison's id.")],
    store: StoreOption = None,
    pictures: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw pictures there.")] = None,
    output: WholeOption = Whole.table,
) -> int:
    """The table, verdict and pictures of a comparison that was run."""
    from service.comparing import print_report
    from service.settings import store_root

    print_report(store_root(store)[0], comparison, pictures, output.value)
    return 0


# -- looking -----------------------------------------------------------------------------------------------------------


@app.command("list")
def list_searches(store: StoreOption = None, output: RowsOption = Rows.table) -> int:
    """The searches of the store, the oldest first."""
    import pyarrow as pa

    from service.summary import summary

    witness = _reading(store)
    found = [summary(witness.search(search_id)) for search_id in witness.searches()]
    found.sort(key=lambda row: (row["created"], row["search_id"]))
    rows = [
        {
            **{key: row[key] for key in ("search_id", "name", "state")},
            "trials": row["asked"],
            "complete": row["trials"].get("complete", 0),
            "metric": row["metric"],
            "best": row["best"] and row["best"]["value"],
            "created": out.moment(row["created"]) if output is Rows.table else row["created"],
        }
        for row in found
    ]
    text, whole, number = pa.string(), pa.int64(), pa.float64()
    created = text if output is Rows.table else number
    kinds = {"search_id": text, "name": text, "state": text, "trials": whole, "complete": whole, "metric": text}
    if rows or output is not Rows.table:
        schema = pa.schema({**kinds, "best": number, "created": created})
        out.print_rows(pa.Table.from_pylist(rows, schema), output.value)
    else:
        say(f"there is no search in {witness.root} yet")
    _warn_of_damage(witness)
    return 0


@app.command()
def show(search: Search, store: StoreOption = None, output: WholeOption = Whole.table) -> int:
    """One search: its state, spec, counts, best trial and cost."""
    from service.summary import summary

    witness = _reading(store)
    found = witness.named(search)
    shown = {**summary(found, witness), "damaged": [{"path": str(d.path), "reason": d.reason} for d in found.damaged]}
    out.print_summary(shown, output.value, spec=True)
    _warn_of_damage(witness)
    return 0


@app.command()
def best(
    search: Search,
    store: StoreOption = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its plain network there: .pt2, .onnx, or .py with .safetensors."),
    ] = None,
    draw: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw its graph there: .png or .svg.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let these replace a file.")] = False,
    retrain: Annotated[
        int | None, typer.Option(metavar="SEEDS", min=1, help="Retrain it from scratch, so often, and store that.")
    ] = None,
    output: WholeOption = Whole.table,
) -> int:
    """The best trial of a search: where it was asked, where it ended, and what it measured."""
    from service.summary import best_trial

    witness = _reading(store)
    chosen, made = witness.named(search), {}
    if retrain is not None or export is not None or draw is not None:
        from service.networks import make_of_best

        with contextlib.redirect_stdout(sys.stderr):  # the user's own modules may print
            made = make_of_best(
                witness.root, chosen, say, retrain=retrain, export=export, draw=draw, overwrite=overwrite
            )
    found = {**best_trial(chosen, witness), **made}
    out.print_best(found, output.value)
    _warn_of_damage(witness)
    return 0


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over searches, trials and reports.")],
    store: StoreOption = None,
    output: RowsOption = Rows.table,
) -> int:
    """Ask the store in SQL (DuckDB's dialect)."""
    from trials.query import query as answered

    witness = _reading(store)
    out.print_rows(answered(witness, sql), output.value)
    _warn_of_damage(witness)
    return 0


@config.command("show")
def config_show(
    store: StoreOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also say where each was set.")] = False,
    output: RowsOption = Rows.table,
) -> int:
    """The settings that hold here."""
    import pyarrow as pa

    from service.settings import settings

    names = ("name", "value", "origin")[: 3 if origin else 2]
    rows = [dict(zip(names, row, strict=False)) for row in settings(store).rows()]
    out.print_rows(pa.Table.from_pylist(rows), output.value)
    return 0


# -- keeping -----------------------------------------------------------------------------------------------------------


@app.command()
def doctor(
    store: StoreOption = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move damaged files to quarantine/ beside them.")
    ] = False,
    output: RowsOption = Rows.table,
) -> int:
    """Verify every file of every search; exit 1 when one is damaged."""
    import pyarrow as pa

    from service.health import COLUMNS, examined

    witness = _reading(store)
    rows = [row for search_id in witness.searches() for row in examined(witness.search(search_id), quarantine)]
    if rows or output is not Rows.table:
        out.print_rows(pa.Table.from_pylist(rows, pa.schema(dict.fromkeys(COLUMNS, pa.string()))), output.value)
    found = out.counted(len(rows), "damaged file") if rows else "all sound"
    many = len(witness.opened)
    say(f"{many} search{'' if many == 1 else 'es'} in {witness.root}: {found}")
    return ERROR if rows else 0


# -- what all share ----------------------------------------------------------------------------------------------------


def _reading(flag: str | None) -> WitnessStore:
    """The store, for reading alone."""
    from service.settings import store_root
    from service.summary import WitnessStore

    return WitnessStore(store_root(flag)[0])


def _warn_of_damage(witness: WitnessStore) -> None:
    damaged = list({damage.path: damage for search in witness.opened for damage in search.damaged}.values())
    for damage in damaged[:MOST_WARNINGS]:
        say(f"warning: {damage}")
    if damaged:
        more = len(damaged) - MOST_WARNINGS
        say(f"warning: {'' if more <= 0 else f'and {more} more; '}all of that is left out; see `continua doctor`")


def _explained(error: Exception) -> tuple[list[str], int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, Invalid):
        return list(error.faults), USAGE
    if hasattr(error, "format_message"):  # typer's and click's usage errors share no public name
        context = getattr(error, "ctx", None)
        error.add_note(f"see `{context.command_path if context else 'continua'} --help`")
        return [error.format_message()], USAGE
    from trials.store import Conflict, Damaged, Held, NotFound

    for kind, code in ((NotFound, NOT_FOUND), (Held, CONFLICT), (Conflict, CONFLICT), (Damaged, ERROR)):
        if isinstance(error, kind):
            return [str(error)], code
    if isinstance(error, OSError) and error.strerror:
        return [f"{error.filename}: {error.strerror}" if error.filename else error.strerror], ERROR
    from service.controller import SearchFailed  # slow, so it is asked last

    if isinstance(error, SearchFailed):
        return [f"the search failed: {error}"], FAILED
    if os.environ.get("CONTINUA_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    words = " ".join(str(error).split())
    return [f"unexpected {type(error).__name__}: {words}; set CONTINUA_DEBUG=1 for the traceback"], ERROR


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never a traceback for a user's mistake."""
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="continua", standalone_mode=False)
        out.put("")
        return int(code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        lines, code = _explained(error)
        for text in [*lines, *getattr(error, "__notes__", ())]:
            say(f"error: {text}" if text in lines else text)
        return code


if __name__ == "__main__":
    sys.exit(main())
