"""Growth: what a unit begins with when its grade leaves 0.

    >>> units = Units(incoming=(linear.weight, linear.bias), outgoing=(head.weight,))
    >>> grown("zero", units, fresh, living_N=living_N, new_N=new_N)

A gate's units are written by tensors with the units on axis 0 and read by tensors with the units on axis 1. Growth
replaces the new units' rows and columns, and for net2net also columns of the units that are copied:

    fresh     initial weights on both sides: the output changes by what a random unit says
    zero      initial incoming, zero outgoing weights: the output stays, whatever the new grade is
    scaled    initial incoming, a tenth of the initial outgoing weights: a tenth of the change of `fresh`
    net2net   a copy of a random living unit, which shares its outgoing weights with its copies (Chen et al. 2016): the
              output stays at the grades that are given, at 1 by default. As grades m of parent and copy move on, the
              pair speaks with (share m_parent + share' m_copy) times its old weights: no growth of this kind can keep
              the output at every grade
    gradmax   zero incoming weights, and the outgoing weights for which the loss has the steepest gradient by the
              incoming ones (Evci et al. 2022, section 3.2): the output stays, whatever the new grade is

All of it holds where each unit is mapped on its own between writer and reader, and phi(0) = 0: relu, tanh, gelu, silu,
poolings, batch norms (with a shift of 0 at first); not a layer norm, whose statistics see every unit. A batch norm
scales `gradmax`'s gradient by 1 / sqrt(variance + eps), and it takes away the mean of what is read: give the matrix
`x` less its mean, and expect a large first gradient, for a unit at 0 has no variance.

relu has no slope at 0, where `gradmax` puts a unit: it would never wake. Give it `incoming`, a small share of the
initial weights (such as 1e-3): the output then stays to that order, and half the data wakes the unit.

Nothing here decides who is new, and nothing is drawn: random numbers are passed in.

Legend of shape suffixes: N units of a gate, O outputs of a reader, I inputs of a writer, T kernel places, B batch,
R new units, W numbers of a unit's outgoing weights, C numbers that a unit reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SCALED = 0.1
SLOPELESS = ("relu",)  # activations whose slope at 0 is 0, as torch has it


@dataclass(frozen=True, kw_only=True)
class Units:
    """The weights of a gate's units, or as many gradients or numbers of an optimiser.

    `incoming`: weights and biases that write them, each [N, ...]; `outgoing`: weights that read them, each [O, N] or
    [O, N, T, ...] (a linear layer behind a flatten: seen as [O, N, places]); `norms`: numbers of each unit between,
    [N]: scale, shift, running statistics.
    """

    incoming: tuple[Tensor, ...]
    outgoing: tuple[Tensor, ...]
    norms: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Birth:
    """All that a kind of growth may look at; see `grown`."""

    units: Units
    initial: Units
    living_N: Tensor
    new_N: Tensor
    grades_N: Tensor
    uniform_N2: Tensor | None
    matrix_WC: Tensor | None
    norm: float | None
    incoming: float


def grown(
    kind: str,
    units: Units,
    initial: Units,
    *,
    living_N: Tensor,
    new_N: Tensor,
    grades_N: Tensor | None = None,
    uniform_N2: Tensor | None = None,
    matrix_WC: Tensor | None = None,
    norm: float | None = None,
    incoming: float = 0.0,
) -> Units:
    """The weights after growth, as new tensors; those of units that are not new stay to the last bit (net2net: but for
    the outgoing weights of units that are copied).

    Args:
        kind: one of `GROWTHS`.
        units: the weights as they are.
        initial: initial weights of the same shapes; only those of new units are read.
        living_N, new_N: which units were members before, and which have just become so, boolean.
        grades_N: the grades at which net2net keeps the output (default: all 1), those of copied units as before.
        uniform_N2: for net2net, uniforms in (0, 1): who is copied, and how unevenly outgoing weights are shared. An
            even share would leave two units of equal grades the same for ever.
        matrix_WC: for gradmax, `gradient_matrix`; blocks of several readers below each other (in the order of
            `outgoing`), of several writers beside each other.
        norm: for gradmax, the norm of a new unit's outgoing weights (default: the living units' mean, as in the paper;
            that of the initial ones where none lives).
        incoming: for gradmax, the share of the initial incoming weights that a unit begins with.

    Raises:
        ValueError: for a kind that is not known, or one that lacks the numbers it needs.
    """
    if kind not in GROWTHS:
        raise ValueError(f"unknown growth {kind!r}; known: {', '.join(GROWTHS)}")
    if grades_N is None:
        grades_N = torch.ones(len(new_N), dtype=units.outgoing[0].dtype, device=new_N.device)
    birth = Birth(
        units=units,
        initial=initial,
        living_N=living_N & ~new_N,
        new_N=new_N,
        grades_N=grades_N,
        uniform_N2=uniform_N2,
        matrix_WC=matrix_WC,
        norm=norm,
        incoming=incoming,
    )
    return GROWTHS[kind](birth)


# -- GradMax's matrix --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Window:
    """A convolution's kernel and how it moves; groups are not known here."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


def gradient_matrix(
    x: Tensor,
    delta: Tensor,
    *,
    writer: Window | None = None,
    reader: Window | None = None,
    bias: bool = False,
    between: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """G with dL/d(incoming) = phi'(0) m W_out' G for units at 0: the sum over data of dL/dz' x' (Evci et al. 2022).

    It is the gradient of the reader's weights, were it to read what the writer reads: exact for linear layers and for
    convolutions, of the whole batch or as the mean that L is.

    Args:
        x: what the writer reads, [B, I], or [B, I, H, W] for a convolution.
        delta: dL/d(what the reader writes), [B, O], or [B, O, H', W'] for a convolution.
        writer, reader: their windows; None for a linear layer.
        bias: whether the writer has one: a last column.
        between: what stands between them besides the activation, as a map of [B, C, H, W] or [B, C]: exact if linear
            and the same for every channel (an average over places); a max pooling must be given as an average.

    Returns:
        [O, C] for a linear reader, else [O T, C], in the order of a unit's flattened outgoing weights; C is I or I T
        and the bias, in the order of a unit's flattened incoming weights.
    """
    read = x if writer is None else _patches(x, writer)
    if bias:
        read = torch.cat([read, torch.ones_like(read[:, :1])], 1)
    if between is not None:
        read = between(read)
    if reader is None:
        return torch.einsum("bo,bc->oc", delta, read)
    # a convolution's gradient by its weights is one of its input with delta; stride and dilation change places
    by_weight = functional.conv2d(
        read.transpose(0, 1), delta.transpose(0, 1), None, reader.dilation, reader.padding, reader.stride
    )
    by_weight_COT = by_weight[:, :, : reader.kernel[0], : reader.kernel[1]].flatten(2)
    return by_weight_COT.permute(1, 2, 0).flatten(0, 1)


def _patches(x: Tensor, window: Window) -> Tensor:
    """What each place of a convolution's output reads, [B, I, H, W] -> [B, I T, H', W']."""
    columns: Tensor = functional.unfold(x, window.kernel, window.dilation, window.padding, window.stride)
    sides = zip(x.shape[2:], window.kernel, window.dilation, window.padding, window.stride, strict=True)
    places = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, d, p, s in sides]
    return columns.reshape(*columns.shape[:2], *places)


# -- kinds -------------------------------------------------------------------------------------------------------------


def _fresh(birth: Birth) -> Units:
    return _replaced(birth.units, birth.initial, birth.new_N)


def _times(share: float) -> Callable[[Birth], Units]:
    """Initial weights, the outgoing ones times a share."""

    def rule(birth: Birth) -> Units:
        start = birth.initial
        less = Units(incoming=start.incoming, outgoing=tuple(w * share for w in start.outgoing), norms=start.norms)
        return _replaced(birth.units, less, birth.new_N)

    return rule


def _net2net(birth: Birth) -> Units:
    living, new, units = birth.living_N.nonzero().flatten(), birth.new_N.nonzero().flatten(), birth.units
    if birth.uniform_N2 is None:
        raise ValueError("net2net must be given uniform_N2, two uniforms for each unit: who is copied, and its share")
    if not len(living):  # nobody to copy
        return GROWTHS["zero"](birth)
    chosen_R = (birth.uniform_N2[new, 0] * len(living)).long().clamp(max=len(living) - 1)
    source_N = torch.arange(len(birth.new_N), device=new.device)
    source_N[new] = living[chosen_R]
    weight_N = torch.ones_like(birth.grades_N)
    weight_N[new] = 0.5 + birth.uniform_N2[new, 1].to(weight_N)
    # the family of parent p speaks as p did alone: m_p = sum over the family of m_i share_i
    spoken_N = torch.zeros_like(weight_N).index_add(0, source_N, birth.grades_N * weight_N)
    parents_N = torch.zeros_like(birth.new_N)
    parents_N[living[chosen_R]] = True
    share_N = torch.where(parents_N, birth.grades_N / spoken_N, 1.0)[source_N] * weight_N
    copies = Units(
        incoming=tuple(w[source_N] for w in units.incoming),
        outgoing=tuple(w[:, source_N] * _along(share_N.to(w), w, 1) for w in units.outgoing),
        norms=tuple(w[source_N] for w in units.norms),
    )
    born, shared = _replaced(units, copies, birth.new_N), _replaced(units, copies, parents_N | birth.new_N)
    return Units(incoming=born.incoming, outgoing=shared.outgoing, norms=born.norms)


def _gradmax(birth: Birth) -> Units:
    if birth.matrix_WC is None:
        raise ValueError("gradmax must be given matrix_WC, the matrix of `gradient_matrix`")
    start, new = birth.initial, birth.new_N.nonzero().flatten()
    # a lane that lost its numbers must not stop the others: torch's svd raises on a NaN
    left_WK, _, _ = torch.linalg.svd(birth.matrix_WC.nan_to_num(0.0, 0.0, 0.0), full_matrices=False)
    # a vector's sign is free: a fixed one makes growth the same on every machine
    largest_K = left_WK.gather(0, left_WK.abs().argmax(0, keepdim=True))
    left_WK = left_WK * torch.where(largest_K < 0, -1.0, 1.0)
    rank = torch.arange(len(new), device=new.device) % left_WK.shape[1]  # beyond the last vector they come again
    columns_WR = left_WK[:, rank] * _norm(birth)
    parts = columns_WR.split([w[:, 0].numel() for w in start.outgoing])
    outgoing = []
    for part_WR, initial_ON in zip(parts, start.outgoing, strict=True):
        w_ON = initial_ON.clone()
        shape = (initial_ON.shape[0], *initial_ON.shape[2:], len(new))
        w_ON[:, new] = part_WR.reshape(shape).movedim(-1, 1).to(w_ON)
        outgoing.append(w_ON)
    less = tuple(w * birth.incoming for w in start.incoming)
    return _replaced(birth.units, Units(incoming=less, outgoing=tuple(outgoing), norms=start.norms), birth.new_N)


def _norm(birth: Birth) -> float | Tensor:
    if birth.norm is not None:
        return birth.norm
    lives = birth.living_N.any()
    weights, who_N = (birth.units, birth.living_N) if lives else (birth.initial, birth.new_N)
    squares_N = torch.stack([w.transpose(0, 1).flatten(1).square().sum(1) for w in weights.outgoing]).sum(0)
    return squares_N.sqrt()[who_N].mean()


GROWTHS: dict[str, Callable[[Birth], Units]] = {
    "fresh": _fresh,
    "zero": _times(0.0),
    "scaled": _times(SCALED),
    "net2net": _net2net,
    "gradmax": _gradmax,
}


def _replaced(units: Units, other: Units, new_N: Tensor) -> Units:
    """The units, those of `new_N` from `other`."""

    def at(axis: int, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(torch.where(_along(new_N, a, axis), b, a) for a, b in zip(old, new, strict=True))

    return Units(
        incoming=at(0, units.incoming, other.incoming),
        outgoing=at(1, units.outgoing, other.outgoing),
        norms=at(0, units.norms, other.norms),
    )


def _along(values_N: Tensor, like: Tensor, axis: int) -> Tensor:
    """Values for each unit, shaped to multiply a tensor with the units on that axis."""
    return values_N.reshape((1,) * axis + (-1,) + (1,) * (like.dim() - axis - 1))
