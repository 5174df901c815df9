"""Forward mode through training (Franceschi et al. 2017, FMD): tangents ride along with the steps.

    >>> Forward().derivative(inner, state, h_KP, batches, outer)

With Z_t = ds_t/dh the tangents of the state, Z_t = dPhi/ds Z_{t-1} + dPhi/dh; at the end the derivative is
dL/dh + dL/ds Z_T. Memory does not grow with the steps, time grows with the coordinates: good for few of them. Equal to
`unrolled` to rounding.

Legend of shape suffixes: K lanes, P coordinates that move, T the flat buffer.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from trials.hypergradients.inner import Batch, Derivative, Inner, State
from trials.hypergradients.unrolled import outer_pull


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One tangent for each coordinate; all lanes' together, for none reaches another."""

    def derivative(
        self, inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], outer: Batch
    ) -> Derivative:
        """d(loss on the outer batch)/dh after training on `batches`, and the state after them."""
        _ready()
        h_KP, state = h_KP.detach(), state.detached()
        coordinates = h_KP.shape[1]
        tangents = [[torch.zeros_like(t) for t in state.tensors()] for _ in range(coordinates)]
        for batch in batches:
            after = state
            for p in range(coordinates):
                after, tangents[p] = self._step(inner.again() if p else inner, state, h_KP, batch, p, tangents[p])
            state = after
        direct_KP, by_weights_T = outer_pull(inner, state, h_KP, outer)
        lanes = len(h_KP)
        through = [inner.dot(by_weights_T, tangent[0], lanes).to(h_KP) for tangent in tangents]
        return Derivative(gradient_KP=direct_KP + torch.stack(through, 1), state=state)

    @staticmethod
    def _step(
        inner: Inner, state: State, h_KP: Tensor, batch: Batch, p: int, tangents: Sequence[Tensor]
    ) -> tuple[State, list[Tensor]]:
        """One training step along coordinate p of every lane: where it leads, and the tangents there."""
        along_KP = torch.zeros_like(h_KP)
        along_KP[:, p] = 1.0
        with forward_ad.dual_level(), torch.enable_grad():
            duals = [dual(t.requires_grad_(), v) for t, v in zip(state.tensors(), tangents, strict=True)]
            after = inner.update(state.like(duals), dual(h_KP, along_KP), batch)
            pairs = [forward_ad.unpack_dual(t) for t in after.tensors()]  # type: ignore[no-untyped-call]
            found = [torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent for pair in pairs]
            primals = [pair.primal.detach() for pair in pairs]
        return state.like(primals), [v.detach() for v in found]


@functools.cache
def _ready() -> None:
    """The first dual number of a process loads torch's own decompositions, and those warn of how torch makes them."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        dual(torch.zeros(()), torch.zeros(()))


def dual(primal: Tensor, tangent: Tensor) -> Tensor:
    return forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call, no-any-return]
