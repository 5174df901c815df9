"""`continua compare SPEC` and `continua report ID`: run a comparison, then print and draw what the store says of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from service import show as out
from service.compare import compare, read_comparison
from service.documents import document, override
from service.driver import Executor
from service.live import Live
from service.pictures import history, trajectories
from service.report import report_of, text
from service.show import say
from trials.store import Store


def run_comparison(
    path: Path,
    overrides: Sequence[str],
    root: Path,
    executor: Executor,
    stop: threading.Event,
    *,
    quiet: bool = False,
) -> str | None:
    """Run the comparison in a file; its id, or None when it was interrupted. Raises `Invalid` with every fault."""
    comparison = read_comparison(override(document(path), overrides), path.parent.absolute())
    store = Store(root)
    if not quiet:
        arms, judged = len(comparison.arms), ", ".join(comparison.judged)
        say(f"comparing {judged}: {arms} arms x {out.counted(comparison.repeats, 'search seed')}, one at a time")
        for note in comparison.task.notes:
            say(f"note: {note}")
    with Live(quiet=quiet) as live:
        comparison_id = compare(comparison, store, executor=executor, watch=live.show_under, interrupted=stop)
    if stop.is_set():
        say(f"interrupted: what ended is stored as {comparison_id}; run the comparison again for the whole of it.")
        return None
    return comparison_id


def print_report(root: Path, comparison_id: str, pictures: Path | None, output: str) -> None:
    """The table, the verdict and the pictures of a comparison, read back from the store. Raises `NotFound`."""
    store = Store.open_for_reading(root)
    report = report_of(store, comparison_id)
    if output == "json":
        out.put(out.as_json(report.to_dict()) + "\n")
    else:
        out.put(f"\n{text(report)}\n\n")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        mode = store.search(report.bests[0]["search_id"]).spec()["spec"]["objective"]["mode"]
        drawn = [history(store, report, pictures / "history.png", mode)]
        drawn += [p] if (p := trajectories(store, report, pictures / "widths.png")) is not None else []
        say("pictures: " + ", ".join(map(str, drawn)))
    say("this table again: " + out.command("report", comparison_id, "--store", str(root)))
    say(f'or from SQL: continua query "{report.sql}" --store {root}')
