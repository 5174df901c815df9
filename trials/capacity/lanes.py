"""Trainings from scratch of many points and replicates as one program of fused lanes, which go on as told.

    >>> lanes = CapacityLanes(MLP(layers=1), task, [{"width.0": 8}, {"width.0": 16}], replicates=32)
    >>> lanes.train(200)
    >>> lanes.losses_PR()

Common random numbers: replicate r of every point of one number begins with the same weights, nested by prefix (a wider
layer begins with the narrower one's), and sees the same batches; replicates and numbers differ in both.

Lanes are laid out alike, at the largest size of each layer, and gated down to their own: each replicate sees batches of
its own, which only batched products can serve. Points of very different sizes therefore cost what the widest does;
their values do not depend on their company but for the order of sums.

Legend of shape suffixes: P points, R replicates, K lanes (P R, replicates of a point side by side), Z sizes, N units,
S streams of random numbers, B batch, V rows of the outer split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from search_spaces import Space, Value
from search_spaces.faults import Invalid, unknown
from search_spaces.networks import MLP, Network
from trials.batches import Rows
from trials.lanes.dense import DenseLanes, DenseShape
from trials.metrics import measure
from trials.noise import data_order
from trials.optimisers import Rule
from trials.tasks import SPLITS, Task
from trials.training import LANE, STRUCTURAL, Training
from trials.widths import GateKind, Widths

MEMBERSHIPS = ("interval", "band")  # whose real sizes are a number each, and whose grades are not random
DEFAULT = Training()
CHUNK = 256  # rows of the outer split that all lanes predict at a time


class CapacityLanes:
    """Trainings from scratch of P points with R replicates each, which go on as far as they are told to; the arguments
    are those of `capacity_loss`. `advance` makes them the particles of persistent evolution strategies: the points say
    where they begin, and `space` how large they may become (units begin with the weights that initialisation gave)."""

    def __init__(
        self,
        network: MLP,
        task: Task,
        points: Sequence[Mapping[str, Value]],
        replicates: int,
        *,
        training: Training = DEFAULT,
        fractional: bool = False,
        space: Space | None = None,
        numbers: Sequence[int] | None = None,
        splits: tuple[Sequence[str], str] = (("train",), "outer"),
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.numbers = [0] * len(points) if numbers is None else list(numbers)
        if faults := _faults(network, task, points, replicates, fractional, space, self.numbers, splits):
            raise Invalid(faults)
        self.network, self.task, self.replicates = network, task, replicates
        self.points = [dict(point) if fractional else network.rounded(point) for point in points]
        self.training = training.at({key: v for key, v in points[0].items() if key in STRUCTURAL})
        self.fractional, self.space, self.seed, self.dtype = fractional, space, seed, dtype
        self.device, self.steps = torch.device(device), 0
        self.flops_P = np.zeros(len(points))
        self.data, self.outer = (
            Rows.of(task, *names, dense=True, device=self.device) for names in (splits[0], (splits[1],))
        )
        self._lay()
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    # -- lanes ---------------------------------------------------------------------------------------------------------

    def _lay(self) -> None:
        """The program, initialised for its points and ready for its first step."""
        network, task, batch = self.network, self.task, self.training.batch_size
        maxima = network.maxima(self.space)
        self.maxima = tuple(maxima) if self._whole_range else self._needed()
        shape = DenseShape(
            inputs=task.inputs,
            outputs=task.outputs,
            activation=str(self.points[0].get("activation", network.activation)),
            loss="cross_entropy" if task.kind == "classification" else "mse",
            parametrisation=network.parametrisation,
            maxima=maxima,
        )
        of_lane = [point for point in self.points for _ in range(self.replicates)]
        pairs = [(number, r) for number in self.numbers for r in range(self.replicates)]
        self._streams = list(dict.fromkeys(pairs))
        self._stream_K = torch.tensor([self._streams.index(pair) for pair in pairs], device=self.device)
        self.lanes = DenseLanes(
            shape, [self.maxima] * len(pairs), batch, gated=True, grouped=True, device=self.device, dtype=self.dtype
        )
        live = [network.sizes(point) for point in of_lane]
        self.lanes.initialise([(self.seed, number, r) for number, r in pairs], live=live)
        rule, hyper = rule_of(self.training, of_lane)
        self.lanes.attach(rule, hyper)
        self._grade(np.array(live, dtype=np.float64))

    @property
    def _whole_range(self) -> bool:
        """Whether lanes are laid out for all sizes of the space, rather than for those of the points alone."""
        network = self.network
        far = self.fractional and network.membership == "band"
        return far or network.parametrisation == "ntk" or self.space is not None

    def _needed(self) -> tuple[int, ...]:
        sizes = np.array([self.network.sizes(point) for point in self.points])
        return tuple(int(n) for n in np.ceil(sizes.max(0)))

    def _grade(self, sizes_KZ: np.ndarray) -> None:
        """Gate every lane down to its sizes."""
        network = self.network
        membership = network.membership if self.fractional and network.membership == "band" else "interval"
        ends = (network.tau, network.tau) if network.tau else None
        kinds = [
            GateKind(name=gate, maximum=maximum, membership=membership, tau=ends)
            for gate, maximum in zip(network.gates, self.maxima, strict=True)
        ]
        widths = Widths(kinds, torch.from_numpy(sizes_KZ), factor=network.parametrisation == "ntk")
        grades = [m_KN.to(self.device, self.dtype) for m_KN in widths.grades()]
        self.lanes.now = [tuple(lane) for lane in sizes_KZ.tolist()]
        self.lanes.grade([[m_KN[k] for m_KN in grades] for k in range(len(sizes_KZ))])

    # -- training ------------------------------------------------------------------------------------------------------

    def train(self, steps: int) -> None:
        """Train every lane so many steps further."""
        with torch.no_grad():
            last = self.steps + max(steps, 1)  # an order of no steps has no shape
            orders = np.stack([self._order(stream, last) for stream in self._streams])
            orders_SRB = torch.from_numpy(orders).to(self.device).transpose(0, 1)
            for step in range(self.steps, self.steps + steps):
                places_KB = orders_SRB[step].index_select(0, self._stream_K)
                x, y = self.data.batch(places_KB.flatten())
                rows = places_KB.shape
                self.lanes.step(x.view(*rows, -1).to(self.dtype), y.view(*rows, -1).to(self.dtype))
        self.steps += steps
        costs = self.network.costs(self.task.shape, self.task.outputs)
        each = [costs.training_flops(self.network.named(self.network.sizes(point))) for point in self.points]
        self.flops_P += np.array([float(flops) for flops in each]) * steps * self.training.batch_size * self.replicates

    def places(self, step: int) -> Tensor:
        """The rows that each lane sees at a step, [K, B]."""
        orders = np.stack([self._order(stream, step + 1)[step] for stream in self._streams])
        return torch.from_numpy(orders).to(self.device).index_select(0, self._stream_K)

    def _order(self, stream: tuple[int, int], steps: int) -> np.ndarray:
        """The batches of one stream's first steps, [steps, B]; the beginning does not depend on how many they are."""
        known = self._orders.get(stream)
        if known is None or len(known) < steps:
            number, r = stream
            purpose = f"capacity order {number}/{r}"
            self._orders[stream] = data_order(self.seed, len(self.data.y_R), self.training.batch_size, steps, purpose)
        return self._orders[stream][:steps]

    def losses_PR(self) -> np.ndarray:
        """The outer loss of every lane now, float64 [P, R]."""
        return self.measured_PR("loss")

    def measured_PR(self, metric: str) -> np.ndarray:
        """A metric of the outer split (`trials.metrics.measure`) for every lane now, float64 [P, R]."""
        total_K = torch.zeros(len(self._stream_K), dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for places in torch.split(torch.arange(len(self.outer.y_R), device=self.device), CHUNK):
                x_VI, _ = self.outer.batch(places)
                logits_KOV = self.lanes.predict(x_VI.to(self.dtype))
                total_K += measure(self.task.kind, logits_KOV, self.outer.y_R[places], "")[metric] * len(places)
        found: np.ndarray = (total_K / len(self.outer.y_R)).cpu().numpy()
        return found.reshape(len(self.points), self.replicates)

    def advance(self, sizes_PZ: np.ndarray, steps: int) -> np.ndarray:
        """Train so many steps further at new sizes, [P, Z]; the mean outer loss over replicates then, [P].

        Raises:
            Invalid: when a size is beyond what was laid out.
        """
        most = np.asarray(self.maxima, dtype=np.float64)
        if (sizes_PZ > most).any() or (sizes_PZ <= 0).any():
            worst = sizes_PZ.max(0).tolist(), sizes_PZ.min(0).tolist()
            raise Invalid(
                [f"sizes: must be above 0 and at most {most.tolist()}, but reach {worst}; give a space, or less sigma."]
            )
        sizes_PZ = sizes_PZ if self.fractional else np.maximum(np.floor(sizes_PZ + 0.5), 1.0)
        self.points = [
            {**point, **named(self.network, sizes_Z)} for point, sizes_Z in zip(self.points, sizes_PZ, strict=True)
        ]
        self._grade(np.repeat(sizes_PZ, self.replicates, 0))
        self.train(steps)
        return np.asarray(self.losses_PR().mean(1))


def named(network: MLP, sizes_Z: np.ndarray) -> dict[str, Value]:
    return {gate: float(n) for gate, n in zip(network.gates, sizes_Z, strict=True)}


def rule_of(training: Training, points: Sequence[Mapping[str, Value]]) -> tuple[Rule, dict[str, Tensor]]:
    """The update rule, and each lane's hyperparameters, name -> [K]."""
    each = [training.at({key: value for key, value in point.items() if key in LANE}) for point in points]
    names = {"lr", "momentum"} if training.optimizer == "sgd" else {"lr", "beta1", "beta2"}
    optional = ("momentum", "weight_decay")
    uses = {n for n in names | {"weight_decay"} if n not in optional or any(getattr(t, n) for t in each)}
    hyper = {name: torch.tensor([float(getattr(t, name)) for t in each], dtype=torch.float64) for name in uses}
    return Rule(kind=training.optimizer, nesterov=training.nesterov and "momentum" in uses, uses=frozenset(uses)), hyper


def _faults(
    network: Network,
    task: Task,
    points: Sequence[Mapping[str, Value]],
    replicates: int,
    fractional: bool,
    space: Space | None,
    numbers: Sequence[int],
    splits: tuple[Sequence[str], str],
) -> list[str]:
    """Broken rules of the arguments."""
    if not isinstance(network, MLP):
        return [f"network: must be an MLP, whose lanes are dense, but got {type(network).__name__}."]
    faults = []
    if not points:
        faults.append("point: needs at least one point, but got none.")
    if not isinstance(replicates, int) or isinstance(replicates, bool) or replicates < 1:
        faults.append(f"replicates: must be a whole number of at least 1, but got {replicates!r}.")
    if fractional and network.membership not in ("auto", *MEMBERSHIPS):
        known = " and ".join(MEMBERSHIPS)
        faults.append(
            f"network.membership: real sizes are known for {known}, but got {network.membership!r}; take one of these, "
            "or whole sizes."
        )
    if len(numbers) != len(points):
        faults.append(f"numbers: must be one for each of {len(points)} points, but got {len(numbers)}.")
    faults += [unknown("splits", name, SPLITS, "split") for name in (*splits[0], splits[1]) if name not in SPLITS]
    if not splits[0]:
        faults.append("splits: the weights need at least one split, but got none.")
    for i, point in enumerate(points):
        faults += _point_faults(f"point {i}", network, point, fractional, space)
    for key in (*STRUCTURAL, "activation"):
        if len(found := {point.get(key) for point in points}) > 1:
            faults.append(f"points: must agree in {key}, which shapes the program, but got {sorted(map(str, found))}.")
    return faults


def _point_faults(
    where: str, network: MLP, point: Mapping[str, Value], fractional: bool, space: Space | None
) -> list[str]:
    known = [*network.gates, *LANE, *STRUCTURAL, "activation"]
    faults = [unknown(where, key, known, "parameter") for key in point if key not in known]
    numbers = [key for key in point if key in network.gates or key in LANE]
    wrong = [key for key in numbers if isinstance(point[key], str | bool) or not math.isfinite(float(point[key]))]  # type: ignore[arg-type]
    faults += [f"{where}.{key}: must be a finite number, but got {point[key]!r}." for key in wrong]
    if wrong:
        return faults
    bounded = space is not None or (fractional and network.membership == "band") or network.parametrisation == "ntk"
    for gate, n, most in zip(network.gates, network.sizes(point), network.maxima(space), strict=True):
        if n <= 0 or (not fractional and n < 0.5):
            faults.append(f"{where}.{gate}: must be at least one unit, or above 0 where sizes are real, but got {n:g}.")
        if bounded and n > most:
            faults.append(f"{where}.{gate}: must be at most {most}, but got {n:g}; widen the space or `network.width`.")
    return faults
