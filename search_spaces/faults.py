"""What is wrong with an input, all of it at once.

Every check in the project returns a list of sentences, each naming the rule, what was given and the way out; whoever
accepts the input raises one `Invalid` with all of them:

    >>> raise Invalid(["space.lr: `low < high` must hold, but got low=1, high=0.1."])
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class Invalid(ValueError):
    """An input that breaks rules. `faults` holds one sentence per broken rule, in the order of the input."""

    def __init__(self, faults: Sequence[str]) -> None:
        assert faults, "an Invalid without a fault says nothing"
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def unknown(where: str, got: object, known: Iterable[object], what: str = "key") -> str:
    """The sentence for a name outside a closed set, with the nearest known one."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    choices = ", ".join(sorted(names)) or "none"
    return f"{where}: unknown {what} {got!r}.{hint} Known: {choices}."
