"""`run`, `compare` and `report`: searches that are run here, by this process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search_spaces.faults import Invalid
from service import show as out
from service.cli.app import INTERRUPTED, Executor, QuietOption, SetOption, StoreOption, Whole, WholeOption, app
from service.cli.places import warn_of_damage
from service.ending import resuming, verdict
from service.show import say

if TYPE_CHECKING:
    from service.spec import SearchSpec
    from trials.store import SearchStore
    from trials.tasks import Task


@app.command()
def run(
    spec: Annotated[Path | None, typer.Argument(metavar="SPEC", help="A spec in YAML or JSON.")] = None,
    store: StoreOption = None,
    executor: Annotated[Executor, typer.Option(help="Where trials are trained.")] = Executor.local,
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with a search instead.")] = None,
    overrides: SetOption = None,
    output: WholeOption = Whole.table,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the spec, say what it means, run nothing.")] = False,
    quiet: QuietOption = False,
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

        chosen = WitnessStore(root).named(resume)
        _want(chosen)
        return _driven(root, chosen.id, None, executor, output, quiet)
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


def _want(search: SearchStore) -> None:
    """Going on with a search that was paused, stopped or cancelled is a new goal for it."""
    from service.access import user
    from service.goal import Edit, change, wanted

    if wanted(search).state != "run":
        change(search, Edit(verb="resume"), by=user())


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
    from trials import layout

    name = search_id or layout.fresh_id(new[0].name if new else "")
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
    warn_of_damage(witness)
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
