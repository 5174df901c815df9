"""SGD, Adam and AdamW on a flat buffer of many lanes' weights, each lane with hyperparameters of its own.

    >>> rule = Rule(kind="sgd", uses=frozenset({"lr", "momentum"}))
    >>> optimiser = Optimiser(rule, hyper={"lr": lr_T, "momentum": momentum_T})
    >>> optimiser.step(weights_T, gradients_T)

torch.optim refuses a learning rate per lane; these take every hyperparameter as a buffer of the weights' shape [T] (or
one that broadcasts to it). The formulas are torch.optim's, term by term, so that one lane equals torch's own optimiser.
A hyperparameter outside `uses` costs nothing: which ones are in use is a fact of the search, never of a bundle.
`updated` is the same update as a function, for derivatives through training.

Legend of shape suffixes: T all weights of all lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which update, and which of its hyperparameters are in use."""

    kind: str = "sgd"
    nesterov: bool = False
    uses: frozenset[str] = frozenset({"lr"})

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the state buffers."""
        if self.kind == "sgd":
            return ("velocity",) if "momentum" in self.uses else ()
        return ("mean", "square", "power1", "power2")


class Optimiser:
    """The state of one update rule over a flat buffer.

    Args:
        hyper: every hyperparameter in `rule.uses`, each [T] or broadcastable to it.
        like: a buffer [T]; the state takes its size, type and device.
    """

    def __init__(self, rule: Rule, hyper: Mapping[str, Tensor], like: Tensor) -> None:
        self.rule = rule
        self.hyper = dict(hyper)
        self.state = {
            slot: torch.ones_like(like) if slot.startswith("power") else torch.zeros_like(like) for slot in rule.slots
        }
        self._work = torch.empty_like(like if rule.kind != "sgd" else like[:0])

    def step(self, weights_T: Tensor, gradients_T: Tensor) -> None:
        """One update, in place. `gradients_T` is overwritten."""
        if self.rule.kind == "sgd":
            self._sgd(weights_T, gradients_T)
        else:
            self._adam(weights_T, gradients_T)

    def forget(self, alive_T: Tensor) -> None:
        """The state of numbers whose mask is 0 is what it was before the first step."""
        for slot, state_T in self.state.items():
            state_T.mul_(alive_T)
            if slot.startswith("power"):
                state_T.add_(1.0 - alive_T)

    def _sgd(self, weights_T: Tensor, gradients_T: Tensor) -> None:
        if "weight_decay" in self.rule.uses:
            gradients_T.addcmul_(self.hyper["weight_decay"], weights_T)
        update_T = gradients_T
        if "momentum" in self.rule.uses:
            velocity_T = self.state["velocity"]
            velocity_T.mul_(self.hyper["momentum"]).add_(gradients_T)
            update_T = velocity_T
            if self.rule.nesterov:
                update_T = gradients_T.addcmul_(self.hyper["momentum"], velocity_T)
        weights_T.addcmul_(self.hyper["lr"], update_T, value=-1)

    def _adam(self, weights_T: Tensor, gradients_T: Tensor) -> None:
        lr_T, beta1_T, beta2_T = (self.hyper[name] for name in ("lr", "beta1", "beta2"))
        mean_T, square_T, power1_T, power2_T = (self.state[slot] for slot in self.rule.slots)
        if "weight_decay" in self.rule.uses:
            decay_T = self.hyper["weight_decay"]
            if self.rule.kind == "adamw":
                torch.mul(lr_T, decay_T, out=self._work)
                weights_T.addcmul_(self._work, weights_T, value=-1)
            else:
                gradients_T.addcmul_(decay_T, weights_T)
        mean_T.mul_(beta1_T).add_(gradients_T).addcmul_(beta1_T, gradients_T, value=-1)
        torch.mul(gradients_T, gradients_T, out=self._work)
        square_T.mul_(beta2_T).add_(self._work).addcmul_(beta2_T, self._work, value=-1)
        power1_T.mul_(beta1_T)
        power2_T.mul_(beta2_T)
        torch.sub(1.0, power2_T, out=gradients_T)
        torch.div(square_T, gradients_T, out=self._work).sqrt_().add_(EPS)
        torch.sub(1.0, power1_T, out=gradients_T)
        self._work.mul_(gradients_T)
        torch.mul(lr_T, mean_T, out=gradients_T)
        weights_T.addcdiv_(gradients_T, self._work, value=-1)


def updated(
    rule: Rule, weights_T: Tensor, state: Mapping[str, Tensor], gradients_T: Tensor, hyper: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weights and the state after one update, out of place and differentiable in all that goes in.

    Args:
        state: each slot of the rule, [T].
        hyper: every hyperparameter in `rule.uses`, each [T] or broadcastable to it.
    """
    decays = "weight_decay" in rule.uses
    if decays and rule.kind != "adamw":
        gradients_T = gradients_T + hyper["weight_decay"] * weights_T
    if rule.kind == "sgd":
        if "momentum" not in rule.uses:
            return weights_T - hyper["lr"] * gradients_T, {}
        velocity_T = state["velocity"] * hyper["momentum"] + gradients_T
        update_T = gradients_T + hyper["momentum"] * velocity_T if rule.nesterov else velocity_T
        return weights_T - hyper["lr"] * update_T, {"velocity": velocity_T}
    if decays and rule.kind == "adamw":
        weights_T = weights_T - hyper["lr"] * hyper["weight_decay"] * weights_T
    beta1_T, beta2_T = hyper["beta1"], hyper["beta2"]
    mean_T = beta1_T * state["mean"] + (1 - beta1_T) * gradients_T
    square_T = beta2_T * state["square"] + (1 - beta2_T) * gradients_T**2
    power1_T, power2_T = state["power1"] * beta1_T, state["power2"] * beta2_T
    # the root has no slope at 0, where a weight that rests or was never reached stands
    some_T = square_T > 0
    root_T = torch.where(some_T, (torch.where(some_T, square_T, 1.0) / (1 - power2_T)).sqrt(), 0.0)
    weights_T = weights_T - hyper["lr"] * mean_T / ((root_T + EPS) * (1 - power1_T))
    return weights_T, {"mean": mean_T, "square": square_T, "power1": power1_T, "power2": power2_T}
