"""How a gradient moves the architecture: the spec's `search.hypergradient`, as a declaration.

>>> Method(kind="bilevel", lr=0.05, every=4, warmup=50)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from search_spaces.faults import unknown
from search_spaces.parameters import is_real

#: kind -> the split whose loss is differentiated
METHODS: dict[str, str | None] = {"none": None, "descent": "train", "bilevel": "outer"}
OUTER_OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class Method:
    """`lr` is in units of the parameter's own unit interval; a move is made every `every` steps after `warmup` steps.

    `dual_lr` is the step of dual ascent on the bounds, `damping` the quadratic term that keeps it from swinging.
    `entropy` and `sparsity` press on a topology: what each bit that its edges are undecided by, on the mean, and what
    each edge that is there adds to the loss that moves them.
    """

    kind: str = "none"
    optimizer: str = "adam"
    lr: float = 0.05
    every: int = 4
    warmup: int = 50
    dual_lr: float = 0.05
    damping: float = 1.0
    entropy: float = 0.0
    sparsity: float = 0.0

    def faults(self, where: str = "search.hypergradient") -> list[str]:
        """Broken rules of the section."""
        faults = []
        if self.kind not in METHODS:
            faults.append(unknown(f"{where}.kind", self.kind, METHODS, "hypergradient"))
        if self.optimizer not in OUTER_OPTIMIZERS:
            faults.append(unknown(f"{where}.optimizer", self.optimizer, OUTER_OPTIMIZERS, "optimizer"))
        for key in ("lr", "dual_lr", "damping", "entropy", "sparsity"):
            value = getattr(self, key)
            if not is_real(value) or value < 0:
                faults.append(f"{where}.{key}: must be a number of at least 0, but got {value!r}.")
        for key, least in (("every", 1), ("warmup", 0)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                faults.append(f"{where}.{key}: must be a whole number of at least {least}, but got {value!r}.")
        return faults

    @property
    def pressures(self) -> dict[str, float]:
        """What presses on a topology, and how hard."""
        return {name: weight for name, weight in (("undecided", self.entropy), ("edges", self.sparsity)) if weight}

    @property
    def split(self) -> str | None:
        """The split whose loss is differentiated."""
        return METHODS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """The section as plain data."""
        return asdict(self)
