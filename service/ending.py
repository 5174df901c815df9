"""What `continua run` says when a search has ended: how it ended, what may be done now, and the exit code.

>>> resuming("digits-3fa2b1", Path("/runs"), "local")
'continua run --resume digits-3fa2b1 --store /runs'
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import show as out
from service.show import say

if TYPE_CHECKING:
    from service.driver import Result

FAILED, INTERRUPTED = 6, 130


def verdict(found: dict[str, Any], result: Result | None, why: str, again: str, root: Path, quiet: bool) -> int:
    """Say how the search ended and what may be done now; the exit code."""
    search_id, endings = found["search_id"], found["trials"]
    failed = sum(count for ending, count in endings.items() if ending != "complete")
    if failed and not quiet:
        ended = f"search_id = '{search_id}' AND ending NOT IN ('complete', 'running')"
        sql = f"SELECT number, ending, error FROM trials WHERE {ended}"
        say(f"{failed} of {found['asked']} trials did not complete; look at: " + querying(root, sql))
    if result is None or result.state == "failed":
        say(f"error: the search failed: {why}")
        over = result is not None and result.progress.done
        say(_way_out(found, over, again))
        return FAILED
    if result.state == "interrupted":
        say("interrupted: all trials that ended are stored, the others will be trained again.")
        say(f"go on with: {again}")
        return INTERRUPTED
    if result.state in ("paused", "stopped", "cancelled"):
        say(f"{result.state}: somebody wanted it so (goal {result.goal}); all trials that ended are stored.")
        say(f"go on with: {again}")
        return 0
    if not quiet:
        best_first = "value" if found["mode"] == "min" else "value DESC NULLS LAST"
        sql = f"SELECT number, value, rounded FROM trials WHERE search_id = '{search_id}' ORDER BY {best_first} LIMIT 5"
        say("look at: " + out.command("show", search_id, "--store", str(root.absolute())))
        say("look at: " + querying(root, sql))
    return 0


def _way_out(found: dict[str, Any], over: bool, again: str) -> str:
    """What may be done about a search that failed: trials that the machine failed are trained again on resuming, while
    there is time; one that is over without such trials has nothing left to do."""
    lost = sum(found["trials"].get(ending, 0) for ending in ("preempted", "oom"))
    if used_up := _used_up(found):
        stay = f" ({out.counted(lost, 'lost trial')} will not be trained again)" if lost else ""
        return f"its time is up, so it cannot go on{stay}: mend the cause, raise {used_up}, then run its spec again."
    if lost:
        return f"{out.counted(lost, 'lost trial')} will be trained again; mend the cause, then go on with: {again}"
    if not over:
        return f"go on with: {again}"
    if found["asked"]:
        return "all its trials have ended, so it cannot go on: mend the cause, then run its spec again."
    return "it cannot go on: raise the budget, then run its spec again."


def _used_up(found: dict[str, Any]) -> str:
    """Which of its budgets of time a search has used up, as the controller counts them when it is resumed."""
    goal, spent = found["goal"], found["spent"]
    names = [name for name in ("wall_seconds", "device_seconds") if goal.get(name) and spent[name] >= goal[name]]
    return " and ".join(f"budget.{name}" for name in names)


def querying(root: Path, sql: str) -> str:
    """The command that asks the store."""
    return f'continua query "{sql}" ' + shlex.join(["--store", str(root.absolute())])


def resuming(search_id: str, root: Path, executor: str) -> str:
    """The command that goes on with a search."""
    where = () if executor == "local" else ("--executor", executor)
    return out.command("run", "--resume", search_id, "--store", str(root.absolute()), *where)
