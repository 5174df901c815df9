"""The user's own Python: `module:function`, imported from the user's directory.

>>> function("objectives:sphere", [Path.cwd()])
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from search_spaces.faults import Invalid, unknown
from service.documents import files_in

OURS = ("service", "trials", "search_spaces")


def function(reference: str, directories: Sequence[Path], where: str = "task") -> Callable[..., Any]:
    """The function `module:attribute` of the user's, whose module may lie in one of `directories`; `where` is the key
    of the spec that names it.

    A directory with a top-level name of ours is refused: on a worker, either code would hide the other.
    """
    directories = list(dict.fromkeys(directory.resolve() for directory in directories))
    own = Path(__file__).resolve().parent.parent
    faults = [
        f"{where}: {directory / name} would hide continua's own package `{name}`; rename it, or keep the code "
        "elsewhere."
        for directory in directories
        if directory != own
        for name in OURS
        if (directory / name).is_dir() or (directory / f"{name}.py").is_file()
    ]
    if faults:
        raise Invalid(faults)
    module_name, _, attribute = reference.partition(":")
    sys.path[:0] = added = [str(directory) for directory in directories]
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        places, files = (
            " or ".join(map(str, directories)),
            [f.removesuffix(".py") for d in directories for f in files_in(d, ".py")],
        )
        near = difflib.get_close_matches(module_name, files, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near and near[0] != module_name else f"It was looked for in {places}."
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise Invalid([f"{where}: {module_name!r} must be a module that imports, but got {problem}. {hint}"]) from error
    finally:
        for path in added:
            if path in sys.path:  # the user's code may have taken it out
                sys.path.remove(path)
    try:
        found = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise Invalid([unknown(where, attribute, functions, f"function of {module_name}")]) from None
    if not callable(found):
        raise Invalid([f"{where}: {reference!r} must be a function, but got {found!r}; name a callable."])
    return found
