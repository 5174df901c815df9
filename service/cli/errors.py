"""What is said of an error, and the exit code; never a traceback for a user's mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from search_spaces.faults import Invalid
from service.cli.app import AUTH, CONFLICT, ERROR, FAILED, NOT_FOUND, TIMEOUT, USAGE

_KINDS = {  # by module and name, for what was never loaded was not raised
    "trials.store": {"NotFound": NOT_FOUND, "Held": CONFLICT, "Conflict": CONFLICT, "Damaged": ERROR},
    "service.board.contract": {"Unreachable": ERROR, "LeaseLost": CONFLICT},
    "service.cli.watching": {"OutOfTime": TIMEOUT},
    "service.executors.ray_cluster": {"NotStarted": ERROR},
}
_ANSWERS = {"NotFound": NOT_FOUND, "Unauthorised": AUTH, "Conflict": CONFLICT, "Invalid": USAGE, "ServiceError": ERROR}


def explained(error: Exception) -> tuple[list[str], int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, Invalid):
        return list(error.faults), USAGE
    if hasattr(error, "format_message"):  # typer's and click's usage errors share no public name
        context = getattr(error, "ctx", None)
        error.add_note(f"see `{context.command_path if context else 'continua'} --help`")
        return [error.format_message()], USAGE
    for kind, code in _loaded("service.client.errors", _ANSWERS):
        if isinstance(error, kind):
            return error.sentences(), code  # type: ignore[attr-defined]
    for module, names in _KINDS.items():
        for kind, code in _loaded(module, names):
            if isinstance(error, kind):
                return [str(error)], code
    if isinstance(error, OSError) and error.strerror:
        return [f"{error.filename}: {error.strerror}" if error.filename else error.strerror], ERROR
    for kind, code in _loaded("service.progress", {"SearchFailed": FAILED}):
        if isinstance(error, kind):
            return [f"the search failed: {error}"], code
    if os.environ.get("CONTINUA_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    words = " ".join(str(error).split())
    return [f"unexpected {type(error).__name__}: {words}; set CONTINUA_DEBUG=1 for the traceback"], ERROR


def _loaded(module: str, names: dict[str, int]) -> Iterator[tuple[type[Exception], int]]:
    """Those of a module's exceptions that there can be by now, with their exit codes."""
    found = sys.modules.get(module)
    if found is not None:
        yield from ((getattr(found, name), code) for name, code in names.items() if hasattr(found, name))
