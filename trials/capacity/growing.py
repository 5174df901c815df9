"""dC_k(theta, z): what growing a given network changes in its validation loss k steps later.

    >>> found = growth_change(shape, trained, rows, ks=(0, 20, 200), training=Training(lr=0.05))
    >>> found.hurts_VS()                        # share of candidates that are worse than the network left as it is

`candidates` different new units (`units` of them at a time) are tried for each kind of growth, and all of them train as
lanes of one program on the same batches, beside one lane that is left as it was. A candidate's change is

    against `trained`     its loss less that of the lane left as it was, after as many further steps on the same batches
    against `converged`   its loss less that of the network as it was given

The first is dC_k. The second is the same at k = 0, and at every k where the network has converged on the very batches
that follow (all rows as one batch). Under batches of a few rows it is not: all lanes leave the minimum together, by the
noise of their gradients, and what that costs is charged to the new unit. So the first alone gives the table of
docs/capacity.md at any batch size.

The kinds are those of `search_spaces.growth`: random units of full scale (`fresh`) or with a tenth of the outgoing
weights (`scaled`), and three that leave the function as it is: `zero`, `net2net` (Chen et al. 2016) and `gradmax` (Evci
et al. 2022). Where random numbers or batches are drawn, candidate c of every kind has the same.

`gradients_VC` is what local search would see: dL/dgamma of the training loss, for an interval gate that lets the new
units speak with grade gamma - n in [0, 1] (<dL/dh, h>), at the end where they speak fully;
`begin_gradients_VC` at the other end, where they say nothing yet. The latter is linear in the outgoing weights: for
random units its sign is that of a coin, and their scale does not matter.

Legend of shape suffixes: V kinds of growth, C candidates, S values of k, K lanes (C a kind, and one left as it was),
R train rows, B batch, I 1 + inputs, O outputs, N units.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from search_spaces.faults import Invalid, unknown
from search_spaces.growth import GROWTHS, SLOPELESS, Units, grown
from trials.capacity.lanes import DEFAULT, rule_of
from trials.lanes.dense import DenseLanes, DenseShape
from trials.lanes.growing import AWAKE
from trials.lanes.program import loss_of
from trials.noise import data_order, fold, uniform
from trials.training import Training

KINDS = ("fresh", "scaled", "zero", "net2net", "gradmax")
ROWS = 64  # validation rows that all lanes predict at a time
AGAINST = ("trained", "converged")


@dataclass(frozen=True, kw_only=True, eq=False)
class GrowthRows:
    """Inputs with a leading column of ones, [rows, 1 + in], and targets as rows, [rows, outputs], in the weights'
    precision: what they are trained on, and what is measured."""

    x_RI: Tensor
    y_RO: Tensor
    validation_x: Tensor
    validation_y: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class GrowthChange:
    """Validation losses of C grown candidates of each kind at each k, `grown_VCS`; of the network left as it was and
    trained as long, `trained_S`; both float64, in units of the loss. `rounding`: up to which share of the loss a change
    is none, for sums in another order differ."""

    kinds: tuple[str, ...]
    ks: tuple[int, ...]
    grown_VCS: np.ndarray
    trained_S: np.ndarray
    converged: float
    gradients_VC: np.ndarray
    begin_gradients_VC: np.ndarray
    rounding: float

    def change_VCS(self, against: str = "trained") -> np.ndarray:
        """dC_k of each candidate: its loss less the baseline's, negative where growing helped."""
        if against not in AGAINST:
            raise Invalid([unknown("against", against, AGAINST, "baseline")])
        return np.asarray(self.grown_VCS - (self.trained_S if against == "trained" else self.converged))

    def hurts_VS(self, against: str = "trained") -> np.ndarray:
        """The share of candidates that raise the loss by more than a rounding; one that diverged does."""
        change_VCS = self.change_VCS(against)
        return np.asarray((~(change_VCS <= self.rounding * self.converged)).mean(1))


def growth_change(
    shape: DenseShape,
    trained: Sequence[Tensor],
    rows: GrowthRows,
    ks: Sequence[int],
    *,
    kinds: Sequence[str] = KINDS,
    candidates: int = 256,
    layer: int = 0,
    units: int = 1,
    training: Training = DEFAULT,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> GrowthChange:
    """Grow a trained network in every way and train on; see the module.

    Args:
        trained: its weights, [out, 1 + in] a layer with the bias in column 0, in the precision to train in.
        ks: after how many steps the loss is measured.
        layer: the hidden layer that grows, by `units` units.
        training: the optimiser (begun anew), its rate and the batch size; `epochs` is not read.

    Raises:
        Invalid: with every rule that the arguments break.
    """
    if faults := _faults(trained, ks, kinds, candidates, layer, units):
        raise Invalid(faults)
    dtype = trained[0].dtype
    before = tuple(len(matrix) for matrix in trained[:-1])
    sizes = tuple(n + units * (i == layer) for i, n in enumerate(before))
    batch = min(training.batch_size, len(rows.x_RI))
    lanes = DenseLanes(
        shape,
        [sizes] * (len(kinds) * candidates + 1),
        batch,
        gated=True,
        grouped=True,
        device=device,
        dtype=dtype,
    )
    lanes.initialise([(seed, c, 0) for _ in kinds for c in range(candidates)] + [(seed, candidates, 0)])
    with torch.no_grad():
        matrices = _gradmax_matrices(shape, trained, rows, candidates, layer, seed) if "gradmax" in kinds else None
        for lane in range(lanes.lanes - 1):
            which, c = divmod(lane, candidates)
            _grow(lanes, lane, kinds[which], trained, layer, None if matrices is None else matrices[c])
        _leave(lanes, trained, layer)
        rule, hyper = rule_of(training, [{}] * lanes.lanes)
        lanes.attach(rule, hyper)
        begin_VC = _gradients(lanes, rows, layer, before[layer], open_share=0.0)[:-1].reshape(len(kinds), candidates)
        # the last one leaves the gate open: what trains are plain networks
        full_VC = _gradients(lanes, rows, layer, before[layer], open_share=1.0)[:-1].reshape(len(kinds), candidates)
        losses_SK = _trained(lanes, rows, sorted(set(ks)), seed)
    each_SK = np.stack([losses_SK[k] for k in ks])
    return GrowthChange(
        kinds=tuple(kinds),
        ks=tuple(ks),
        grown_VCS=each_SK[:, :-1].reshape(len(ks), len(kinds), candidates).transpose(1, 2, 0),
        trained_S=each_SK[:, -1],
        converged=float(losses_SK[0][-1]),
        gradients_VC=full_VC,
        begin_gradients_VC=begin_VC,
        rounding=64 * torch.finfo(dtype).eps,
    )


# -- growth ------------------------------------------------------------------------------------------------------------


def _laid(trained: Sequence[Tensor], like: Sequence[Tensor], layer: int) -> list[Tensor]:
    """The trained weights among zeros for the new units, which are the last of their layer."""
    found = []
    for matrix, view in zip(trained, like, strict=True):
        rows, columns = (a - b for a, b in zip(view.shape, matrix.shape, strict=True))
        found.append(functional.pad(matrix.to(view), (0, columns, 0, rows)))
    return found


def _leave(lanes: DenseLanes, trained: Sequence[Tensor], layer: int) -> None:
    """The last lane is the network as it was: its new units neither read nor write, so no gradient wakes them."""
    views = lanes.matrices(lanes.lanes - 1)
    for view, matrix in zip(views, _laid(trained, views, layer), strict=True):
        view.copy_(matrix)


def _grow(
    lanes: DenseLanes, lane: int, kind: str, trained: Sequence[Tensor], layer: int, matrix_WC: Tensor | None
) -> None:
    """Put the trained weights into a lane and grow it."""
    views, start = lanes.matrices(lane), lanes.initial(lane)
    laid, count = _laid(trained, views, layer), len(views[layer])
    new_N = torch.arange(count, device=lanes.device) >= len(trained[layer])
    seed, candidate, _ = lanes.identities[lane]
    after = grown(
        kind,
        Units(incoming=(laid[layer],), outgoing=(laid[layer + 1][:, 1:],)),
        Units(incoming=(start[layer],), outgoing=(start[layer + 1][:, 1:],)),
        living_N=~new_N,
        new_N=new_N,
        uniform_N2=uniform(fold(seed, "growth", candidate, 0, layer), count, 2, lanes.device).to(lanes.dtype),
        matrix_WC=matrix_WC,
        incoming=AWAKE if lanes.shape.activation in SLOPELESS else 0.0,
    )
    laid[layer] = after.incoming[0]
    laid[layer + 1] = torch.cat([laid[layer + 1][:, :1], after.outgoing[0]], 1)
    for view, weights in zip(views, laid, strict=True):
        view.copy_(weights)


def _gradmax_matrices(
    shape: DenseShape, trained: Sequence[Tensor], rows: GrowthRows, candidates: int, layer: int, seed: int
) -> list[Tensor]:
    """GradMax's matrix for every candidate, [next, 1 + inputs], each on rows of its own: a share of the train rows, or
    all candidates would be the same unit."""
    batch = max(1, len(rows.x_RI) // 4)
    single = DenseLanes(
        shape, [tuple(len(m) for m in trained[:-1])], batch, gated=True, device=rows.x_RI.device, dtype=trained[0].dtype
    )
    single.initialise([(seed, 0, 0)])
    for view, matrix in zip(single.matrices(0), trained, strict=True):
        view.copy_(matrix)
    found = []
    for candidate in range(candidates):
        places_B = torch.from_numpy(data_order(seed, len(rows.x_RI), batch, 1, f"gradmax {candidate}")[0])
        places_B = places_B.to(rows.x_RI.device)
        found.append(single.growth_matrices(rows.x_RI[places_B], rows.y_RO[places_B])[0][layer].clone())
    return found


# -- training and measuring --------------------------------------------------------------------------------------------


def _trained(lanes: DenseLanes, rows: GrowthRows, ks: Sequence[int], seed: int) -> dict[int, np.ndarray]:
    """The validation losses after 0 steps and after each k, [K]."""
    order = data_order(seed, len(rows.x_RI), lanes.batch, max(ks[-1], 1), "growth order")
    places_SB = torch.from_numpy(order).to(rows.x_RI.device)
    found = {0: _losses(lanes, rows)}
    for step in range(ks[-1]):
        lanes.step(rows.x_RI[places_SB[step]], rows.y_RO[places_SB[step]])
        if step + 1 in ks:
            found[step + 1] = _losses(lanes, rows)
    return found


def _losses(lanes: DenseLanes, rows: GrowthRows) -> np.ndarray:
    by_lane = torch.vmap(functools.partial(loss_of, lanes.shape.loss), in_dims=(0, None))
    total_K = torch.zeros(lanes.lanes, dtype=torch.float64, device=lanes.device)
    for x_BI, y_BO in zip(torch.split(rows.validation_x, ROWS), torch.split(rows.validation_y, ROWS), strict=True):
        total_K += by_lane(lanes.predict(x_BI).mT, y_BO) * len(x_BI)
    found: np.ndarray = (total_K / len(rows.validation_x)).cpu().numpy()
    return found


def _gradients(lanes: DenseLanes, rows: GrowthRows, layer: int, living: int, open_share: float) -> np.ndarray:
    """dL/dgamma of the training loss where the new units speak with grade `open_share`, summed over them, [K]."""
    grades = [torch.ones(n, dtype=lanes.dtype, device=lanes.device) for n in lanes.sizes[0]]
    grades[layer][living:] = open_share
    lanes.sample([grades] * lanes.lanes)
    total_K = np.zeros(lanes.lanes)
    whole = len(rows.x_RI) // lanes.batch  # rows beyond whole batches are left out
    for b in range(whole):
        place = slice(b * lanes.batch, (b + 1) * lanes.batch)
        found = lanes.grade_gradients(rows.x_RI[place], rows.y_RO[place])
        total_K += torch.stack([lane[layer][living:].sum() for lane in found]).double().cpu().numpy()
    return total_K / whole


def _faults(
    trained: Sequence[Tensor], ks: Sequence[int], kinds: Sequence[str], candidates: int, layer: int, units: int
) -> list[str]:
    faults = []
    if len(trained) < 2:
        faults.append(f"trained: must have at least two matrices, or no layer can grow, but got {len(trained)}.")
    elif not 0 <= layer < len(trained) - 1:
        faults.append(f"layer: must be a hidden one, 0 to {len(trained) - 2}, but got {layer!r}.")
    if not ks or any(not isinstance(k, int) or k < 0 for k in ks):
        faults.append(f"ks: must be whole numbers of steps of at least 0, at least one, but got {list(ks)!r}.")
    faults += [unknown("kinds", kind, GROWTHS, "growth") for kind in kinds if kind not in GROWTHS]
    if not kinds:
        faults.append(f"kinds: needs at least one, of {', '.join(GROWTHS)}.")
    for name, value in (("candidates", candidates), ("units", units)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            faults.append(f"{name}: must be a whole number of at least 1, but got {value!r}.")
    return faults
