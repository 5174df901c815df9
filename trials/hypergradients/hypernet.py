"""A best response that is learned with the weights: self-tuning networks (MacKay et al. 2019), centred and linearised
(Delta-STN: Bae and Grosse 2020, section 4), with a full response Jacobian, for P is small.

    >>> hypernet = Hypernet(scale=0.05, units=lambda h_KP: high_P - low_P, draw=drawn(identities, coordinates))
    >>> found = hypernet.derivative(inner, state, h_KP, batches, outer)        # once a window; it keeps the response

Around h the weights are taken to follow as w(h + e) = W + J e. Each training step tries both ends of one e = sigma z,
z ~ N(0, I) and sigma = `scale` units, on the same batch and noise, where the forces are F+ and F-:

    W    steps by the lanes' own rule along the mean of the two directions: what e does cancels to second order
    J_p  -= rate (F+ - F-)/2 z_p / (sigma_p |z|^2)

On a quadratic (F+ - F-)/2 = (H J + dF/dh) e, so J rests at dw*/dh, and each step is one of gradient descent on the
response to the direction just tried, exactly. The expected step without |z|^2 is P times as long, but its variance
blows up from rate times curvature of 2/(P + 2) on (least mean squares), while training itself bears 2; divided by |z|^2
(normalised LMS, Nagumo and Noda 1967) the response is stable wherever gradient descent is. J steps by plain SGD:
momentum would carry one direction's step into the next direction, and Adam's scale cancels the length of what is
measured. After the window the derivative is dL/dh + J' dL/dW.

It sees whatever the training loss and weight decay depend on, and what only leads to the minimum it does not.

Legend of shape suffixes: K lanes, P coordinates that move, T the flat buffer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from search_spaces.faults import Invalid
from trials.hypergradients.implicit import rates
from trials.hypergradients.inner import Batch, Derivative, Inner, State
from trials.hypergradients.unrolled import outer_pull
from trials.noise import fold, normal

_BLOCK = 64  # steps that are drawn at once: a draw costs about the same for one number as for a hundred
_LEAST = 1e-4  # of |z|^2: both ends of a shorter perturbation differ by little more than rounding


class Hypernet:
    """The response of one bundle's lanes; takes the training steps of the batches that it is given.

    Args:
        scale: how far to perturb, in units of each coordinate; the response is the slope over that reach, and the
            losses must be defined at h + e.
        units: h [K, P] -> the unit of each coordinate there, [K, P] or broadcastable to it; where it is 0 nothing is
            tried.
        room: h [K, P] -> how far each coordinate may go either way, [K, P]: a perturbation is cut off there (default:
            as far as it is drawn).
        draw: step -> standard normal numbers [K, P]: a function of whose they are and of the step (`drawn`).
        step: how many steps the lanes have taken: where `draw` begins.
    """

    def __init__(
        self,
        *,
        scale: float,
        units: Callable[[Tensor], Tensor],
        draw: Callable[[int], Tensor],
        room: Callable[[Tensor], Tensor] | None = None,
        step: int = 0,
    ) -> None:
        if not scale > 0:
            raise Invalid([f"hypernet.scale: must be a number above 0, but got {scale!r}."])
        self.scale, self.units, self.draw, self.room, self.step = scale, units, draw, room, step
        self.response_PT: Tensor | None = None
        self._rested_T: Tensor | None = None  # the weights that were resting when it was last asked

    def reset(self) -> None:
        """Weights follow nothing yet: for lanes laid out anew, whose numbers lie elsewhere in the buffer."""
        self.response_PT = self._rested_T = None

    def relaid(self, before_T: Tensor, now_T: Tensor, same: Sequence[int]) -> None:
        """Lanes have been laid out anew, from where `before_T` says whose each number was to where `now_T` does. The
        weights of those that are the `same` as before follow as they did; the others', which lie elsewhere, nothing.
        """
        if self.response_PT is None:
            return
        lanes = torch.tensor(same, dtype=before_T.dtype, device=before_T.device)
        was_T, is_T = torch.isin(before_T, lanes), torch.isin(now_T, lanes)
        response_PT = self.response_PT.new_zeros(len(self.response_PT), len(now_T))
        response_PT[:, is_T] = self.response_PT[:, was_T]
        if self._rested_T is not None:
            rested_T = torch.zeros_like(now_T, dtype=torch.bool)
            rested_T[is_T] = self._rested_T[was_T]
            self._rested_T = rested_T
        self.response_PT = response_PT

    def saved(self, by_lane: Callable[[Tensor], Tensor], lanes: int) -> dict[str, Tensor]:
        """What it remembers after some windows, by name, [K, ...]; `by_lane` sorts a buffer [T, ...] by lane."""
        found = {"step": torch.full((lanes,), self.step)}
        if self.response_PT is not None:
            found["response"] = by_lane(self.response_PT.mT)
        if self._rested_T is not None:
            found["rested"] = by_lane(self._rested_T)
        return found

    def resume(self, state: Mapping[str, Tensor], take: Callable[[Tensor, Tensor], None], like_T: Tensor) -> None:
        """Go on from what `saved` gave; `take(rows, buffer)` is the way back, into a buffer like `like_T`."""
        self.step = int(state["step"][0])
        if "response" in state:
            rows_KMP = state["response"].to(like_T)
            response_TP = like_T.new_zeros(len(like_T), rows_KMP.shape[2])
            take(rows_KMP, response_TP)
            self.response_PT = response_TP.mT.contiguous()
        if "rested" in state:
            self._rested_T = torch.zeros_like(like_T, dtype=torch.bool)
            take(state["rested"].to(like_T.device), self._rested_T)

    def derivative(
        self, inner: Inner, state: State, h_KP: Tensor, batches: Sequence[Batch], outer: Batch
    ) -> Derivative:
        """d(loss on the outer batch)/dh after training on `batches`, and the state after them."""
        h_KP, state = h_KP.detach(), state.detached()
        lanes, coordinates = h_KP.shape
        shape = (coordinates, len(state.weights_T))
        response_PT = self.response_PT
        if response_PT is None or response_PT.shape != shape:
            response_PT, self._rested_T = state.weights_T.new_zeros(shape), None
        if self._rested_T is not None:  # a unit that has just begun to speak begins anew
            response_PT = torch.where(self._rested_T, 0.0, response_PT)
        self._rested_T = inner.hyper(h_KP)["lr"].detach() == 0
        reach_KP = (self.scale * self.units(h_KP).to(h_KP)).expand_as(h_KP)
        for batch in batches:
            state, response_PT = self._step(inner, state, h_KP, reach_KP, response_PT, batch)
            self.step += 1
        self.response_PT = response_PT
        direct_KP, by_weights_T = outer_pull(inner, state, h_KP, outer)
        through = [inner.dot(by_weights_T, response_T, lanes).to(h_KP) for response_T in response_PT]
        return Derivative(gradient_KP=direct_KP + torch.stack(through, 1), state=state)

    def _step(
        self, inner: Inner, state: State, h_KP: Tensor, reach_KP: Tensor, response_PT: Tensor, batch: Batch
    ) -> tuple[State, Tensor]:
        """One training step of the weights, and one of their response to the direction that is drawn for it."""
        z_KP = torch.where(reach_KP != 0, self.draw(self.step).to(h_KP), 0.0)
        e_KP = reach_KP * z_KP
        if self.room is not None:
            room_KP = self.room(h_KP).to(h_KP)
            e_KP = torch.minimum(torch.maximum(e_KP, -room_KP), room_KP)
            z_KP = torch.where(reach_KP != 0, e_KP / torch.where(reach_KP != 0, reach_KP, 1.0), 0.0)
        weights_T = state.weights_T
        follow_T = (inner.spread(e_KP.to(weights_T)).T * response_PT).sum(0)
        ahead_T, force_ahead_T = _pulls(inner, weights_T + follow_T, h_KP + e_KP, batch)
        back_T, force_back_T = _pulls(inner.again(), weights_T - follow_T, h_KP - e_KP, batch)
        with torch.no_grad():
            after = inner.stepped(state, h_KP, (ahead_T + back_T) / 2).detached()
            rate_T = rates(inner.rule, inner.hyper(h_KP))
            length_K1 = z_KP.square().sum(1, keepdim=True).clamp(min=_LEAST)
            share_KP = torch.where(reach_KP != 0, z_KP / (reach_KP * length_K1), 0.0)
            step_T = rate_T * (force_ahead_T - force_back_T) / 2
            response_PT = response_PT - inner.spread(share_KP.to(step_T)).T * step_T
        return after, response_PT


def drawn(identities: Sequence[tuple[int, int, int]], coordinates: int) -> Callable[[int], Tensor]:
    """Draws [K, P] for lanes of these (seed, trial number, replicate): the same whatever bundle a lane is in."""

    @functools.lru_cache(maxsize=1)
    def block(number: int) -> Tensor:
        keys = [fold(seed, "response", *who, number) for seed, *who in identities]
        return torch.stack([normal(key, _BLOCK, coordinates) for key in keys], 1)

    return lambda step: block(step // _BLOCK)[step % _BLOCK]


def _pulls(inner: Inner, weights_T: Tensor, h_KP: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(what the rule is given, what vanishes at rest): they differ by the pull of weight decay, which is the rule's."""
    direction_T = inner.direction(weights_T, h_KP, batch, graph=False).detach()
    if "weight_decay" not in inner.rule.uses:
        return direction_T, direction_T
    return direction_T, direction_T + inner.hyper(h_KP)["weight_decay"].detach() * weights_T
