"""How a gradient moves the architecture and the rates: the spec's `search.hypergradient`, as a declaration. No torch.

>>> Method(kind="bilevel", lr=0.05, every=4, warmup=50)
>>> Method(kind="truncated", every=50, horizon=10).blind("lr") is None
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

from search_spaces.faults import unknown
from search_spaces.parameters import is_real

RATES = ("lr", "momentum", "weight_decay", "beta1", "beta2", "dropout")  # of the training
OUTER_OPTIMIZERS = ("adam", "sgd")
ENDS = ("clamp", "reflect", "sigmoid")
SCHEDULES = ("constant", "linear", "cosine")
SOLVERS = ("neumann", "cg")
ORDERS = ("first", "second")
_NOW = "it looks at the loss of now, which no rate of the optimiser is part of"
_REST = "it knows where training comes to rest, not how it gets there"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What there is to know of a kind before it runs: the `split` whose loss is differentiated, the `options` that are
    its own, the rates that it `sees` beside the architecture, and why not the others. One that `trains` takes the
    training steps between two moves itself."""

    split: str | None = "outer"
    options: tuple[str, ...] = ()
    sees: tuple[str, ...] = RATES
    blind: str = ""
    trains: bool = False


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "none": Kind(split=None, sees=()),
        "descent": Kind(split="train", sees=(), blind=_NOW),
        "bilevel": Kind(options=("order",), blind=_NOW),
        "unrolled": Kind(options=("checkpoints",), trains=True),
        "truncated": Kind(options=("horizon",), trains=True),
        "forward": Kind(trains=True),
        "reversible": Kind(
            sees=("lr", "momentum", "weight_decay", "dropout"), blind="only SGD with momentum is reversed", trains=True
        ),
        "implicit": Kind(options=("solver", "terms", "ridge"), sees=("weight_decay", "dropout"), blind=_REST),
        "hypernet": Kind(options=("scale",), sees=("weight_decay", "dropout"), blind=_REST, trains=True),
    }
)
_OWN = {option: name for name, kind in KINDS.items() for option in kind.options}  # option -> whose it is


@dataclass(frozen=True, kw_only=True)
class Method:
    """`lr` is in units of the parameter's own unit interval; a move is made every `every` steps after `warmup` steps.
    The kinds that go through training go through the `every` steps between two moves.

    `ends` says what keeps a parameter in its range: it is cut off there (clamp), turned back (reflect), or moved on the
    scale of log(u / (1 - u)) (sigmoid). `schedule` lowers `lr` over the training. A lane whose derivative is longer
    than `clip`, in units of the unit cube, is shortened to it (0: never).

    `dual_lr` is the step of dual ascent on the bounds, `damping` the quadratic term that keeps it from swinging.
    `entropy` and `sparsity` press on a topology: what each bit that its edges are undecided by, on the mean, and what
    each edge that is there adds to the loss that moves them.

    Of one kind alone: `order` (bilevel) first, or second: exactly through one step. `checkpoints` (unrolled) keeps
    about sqrt(every) states and takes the steps between them again. `horizon` (truncated) is how many of the last
    steps it goes back through. `solver`, `terms` and `ridge` (implicit) are how the inverse is applied, how many
    products it takes, and what is added to the curvature. `scale` (hypernet) is how far it looks around, in units of
    the unit interval.
    """

    kind: str = "none"
    optimizer: str = "adam"
    lr: float = 0.05
    schedule: str = "constant"
    every: int = 4
    warmup: int = 50
    ends: str = "clamp"
    clip: float = 10.0
    dual_lr: float = 0.05
    damping: float = 1.0
    entropy: float = 0.0
    sparsity: float = 0.0
    order: str = "first"
    checkpoints: bool = False
    horizon: int = 1
    solver: str = "neumann"
    terms: int = 10
    ridge: float = 0.0
    scale: float = 0.05

    def faults(self, where: str = "search.hypergradient") -> list[str]:
        """Broken rules of the section."""
        faults = []
        if self.kind not in KINDS:
            faults.append(unknown(f"{where}.kind", self.kind, KINDS, "hypergradient"))
        for key, known in NAMES.items():
            if getattr(self, key) not in known:
                faults.append(unknown(f"{where}.{key}", getattr(self, key), known, key))
        for key in ("lr", "clip", "dual_lr", "damping", "entropy", "sparsity", "ridge", "scale"):
            value = getattr(self, key)
            if not is_real(value) or value < 0 or (key == "scale" and value == 0):
                rule = "a number above 0" if key == "scale" else "a number of at least 0"
                faults.append(f"{where}.{key}: must be {rule}, but got {value!r}.")
        for key, least in (("every", 1), ("warmup", 0), ("horizon", 1), ("terms", 1)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                faults.append(f"{where}.{key}: must be a whole number of at least {least}, but got {value!r}.")
        checkpoints: object = self.checkpoints
        if not isinstance(checkpoints, bool):
            faults.append(f"{where}.checkpoints: must be true or false, but got {self.checkpoints!r}.")
        return faults or self._joint_faults(where)

    def _joint_faults(self, where: str) -> list[str]:
        own = KINDS[self.kind].options
        faults = [
            f"{where}.{key}: is an option of {_OWN[key]}, but got kind={self.kind!r}; drop it."
            for key in _OWN
            if key not in own and getattr(self, key) != _DEFAULTS[key]
        ]
        if self.kind == "truncated" and self.horizon > self.every:
            faults.append(
                f"{where}.horizon: must be at most `every`, the steps between two moves, but got "
                f"horizon={self.horizon}, every={self.every}; raise every."
            )
        return faults

    def blind(self, name: str) -> str | None:
        """Why this method cannot move a rate, in a sentence; None where it can."""
        kind, name = KINDS[self.kind], name.partition(".")[0]
        if name in kind.sees and not (self.kind == "bilevel" and self.order == "first"):
            return None
        able = [n for n, other in KINDS.items() if name in other.sees]
        ways = ", ".join("bilevel with order: second" if n == "bilevel" else n for n in able)
        return f"{self.kind} cannot see {name}: {kind.blind}; take {ways}, or drop `moved_by`."

    @property
    def pressures(self) -> dict[str, float]:
        """What presses on a topology, and how hard."""
        return {name: weight for name, weight in (("undecided", self.entropy), ("edges", self.sparsity)) if weight}

    @property
    def split(self) -> str | None:
        """The split whose loss is differentiated."""
        return KINDS[self.kind].split

    @property
    def window(self) -> int:
        """The training steps that it takes itself before each move; 0 where it looks from where the training stands."""
        return self.every if KINDS[self.kind].trains else 0

    @property
    def direct(self) -> bool:
        """Whether it takes the loss of now alone: first order."""
        return self.kind == "descent" or (self.kind == "bilevel" and self.order == "first")

    def moves(self, steps: int) -> list[int]:
        """How many steps of a training are done at each of its moves."""
        if self.kind == "none":
            return []
        return list(range(self.warmup + self.window, steps + (1 if self.window else 0), self.every))

    def to_dict(self) -> dict[str, Any]:
        """The section as plain data, without the other kinds' options."""
        own = KINDS[self.kind].options if self.kind in KINDS else ()
        return {key: value for key, value in asdict(self).items() if key not in _OWN or key in own}


NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"optimizer": OUTER_OPTIMIZERS, "schedule": SCHEDULES, "ends": ENDS, "order": ORDERS, "solver": SOLVERS}
)
_DEFAULTS = {item.name: item.default for item in fields(Method) if item.default is not MISSING}
