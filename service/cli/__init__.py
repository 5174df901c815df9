"""The command line: one small function a command; data on stdout, everything else on stderr.

    $ continua run digits.yaml --set budget.trials=64
    $ continua query "SELECT number, value FROM trials ORDER BY value LIMIT 3" -o csv

app          the frame: options that are shared, exit codes
running      run, compare, report
looking      list, show, best, query, config show, doctor
submitting   submit, watch
controlling  pause, resume, stop, cancel, scale, extend, narrow, prioritise
serving      up, serve, work
tokens       token add, list, revoke

Whatever is heavy is imported by the command that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer

from service import show as out
from service.cli import controlling, looking, running, serving, submitting, tokens
from service.cli.app import INTERRUPTED, app
from service.cli.errors import explained
from service.show import say

ORDER = (  # of the commands in `--help`
    *("run", "submit", "list", "show", "watch", "best", "query"),
    *("pause", "resume", "stop", "cancel", "scale", "extend", "narrow", "prioritise"),
    *("compare", "report", "up", "serve", "work", "doctor"),
)
__all__ = ["app", "controlling", "looking", "main", "running", "serving", "submitting", "tokens"]

app.registered_commands.sort(key=lambda command: ORDER.index(command.name or command.callback.__name__))  # type: ignore[union-attr]


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
        lines, code = explained(error)
        for text in [*lines, *getattr(error, "__notes__", ())]:
            say(f"error: {text}" if text in lines else text)
        return code
