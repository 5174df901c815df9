"""The program's frame: the app that commands are added to, the options that they share, and how numbers end it.

Exit codes: 0 ok, 1 error, 2 usage (a faulty spec, a statement that is none), 3 not found, 4 no right to it, 5 conflict
(a live owner, a goal that has moved on), 6 the search failed, 7 out of time, 130 interrupted.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from service import show as out
from service.ending import FAILED, INTERRUPTED

__all__ = ["AUTH", "CONFLICT", "ERROR", "FAILED", "INTERRUPTED", "NOT_FOUND", "TIMEOUT", "USAGE", "app", "config"]

ERROR, USAGE, NOT_FOUND, AUTH, CONFLICT, TIMEOUT = 1, 2, 3, 4, 5, 7


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


class Seen(StrEnum):
    """How a search that is watched is printed: as it stands in the end, or each event on a line."""

    table = "table"
    json = "json"
    jsonl = "jsonl"


StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="DIR", help="The store [default: see `continua config show`].")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The service [default: see `continua config show`].")
]
BoardOption = Annotated[
    str | None, typer.Option("--board", metavar="URL", help="The board: sqlite:///FILE or redis://HOST:PORT/0.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: budget.trials=64.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")]
WholeOption = Annotated[Whole, typer.Option("-o", "--output", help="How to print it.")]
RowsOption = Annotated[
    Rows, typer.Option("-o", "--output", help="How to print it. JSON and CSV say NaN and infinities as text.")
]
Search = Annotated[str, typer.Argument(metavar="ID", help="The search, or the beginning of its id.")]

app = typer.Typer(name="continua", rich_markup_mode=None, pretty_exceptions_enable=False)
config = typer.Typer(rich_markup_mode=None, help="The settings.")
token = typer.Typer(rich_markup_mode=None, help="Who may use the service: its tokens.")
app.add_typer(config, name="config")
app.add_typer(token, name="token")


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
