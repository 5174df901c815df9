"""How initialisation and learning rates follow a layer's widths: `sp`, `mup` or `ntk`, as plain arithmetic.

    >>> scaling("mup", "adam", fan_in=256, base_in=64, reads=True, writes=True)
    Scaling(std=0.08838834764831845, weight_lr=0.25, bias_lr=1.0)

Every kind draws He weights (variance 2 / fan-in) at the live fan-in and has no factor in the forward pass, but:

    sp   learning rates are the same at every width
    mup  Yang and Hu et al. 2022 ("Tensor Programs V", table 3 and appendix D.2): the update of what every layer writes
         keeps its scale, so the best learning rate moves less with the width; learning rates are those of sp at layers
         of 64 units, and the output layer begins at 0
    ntk  weights are drawn at fan-in N, the layer's greatest size, and what is read is multiplied by sqrt(N / n) at run
         time (Jacot et al. 2018)

`reads` and `writes` say whether the layer's inputs and outputs have a width: an input layer does not read one, an
output layer does not write one. Where both are fixed, nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE = 64  # the units at which mup's learning rates are sp's


@dataclass(frozen=True)
class Scaling:
    """The standard deviation of a layer's first weights, and what its learning rates are multiplied by."""

    std: float
    weight_lr: float = 1.0
    bias_lr: float = 1.0


def scaling(
    kind: str,
    optimizer: str,
    *,
    fan_in: float,
    base_in: float,
    fan_out: float = 1.0,
    base_out: float = 1.0,
    reads: bool,
    writes: bool,
) -> Scaling:
    """The scaling of one layer.

    Args:
        optimizer: sgd, or adam and its like, whose updates do not scale with the gradient.
        fan_in, base_in: numbers that each unit reads, at the live sizes and at the ones it is relative to.
        fan_out, base_out: units that are written, likewise.
    """
    he = (2.0 / max(fan_in, 1e-12)) ** 0.5
    if kind == "sp":
        return Scaling(he)
    if kind == "ntk":
        return Scaling((2.0 / base_in) ** 0.5 if reads else he)
    narrow_in = base_in / max(fan_in, 1e-12) if reads else 1.0
    narrow_out = base_out / max(fan_out, 1e-12) if writes else 1.0
    std = 0.0 if reads and not writes else he  # an output layer begins silent (appendix D.2)
    if optimizer != "sgd":
        return Scaling(std, weight_lr=narrow_in)
    if not writes:
        return Scaling(std, weight_lr=narrow_in)
    return Scaling(std, weight_lr=1.0 if reads else 1.0 / narrow_out, bias_lr=1.0 / narrow_out)
