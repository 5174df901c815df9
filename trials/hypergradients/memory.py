"""What a lane holds in memory while a method goes through its window: an estimate, so that one that cannot fit is
refused before it trains.

>>> round(window_bytes(Method(kind="unrolled", every=1000), parameters=3466, activations=138, batch=64) / 1e6)
132

A traced step of SGD keeps about four numbers a parameter (weights, velocity, gradient and its cotangent), one of Adam
about fifteen, and two for each activation of the batch; measured on multi-layer perceptrons and convolutions, to a
quarter.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

from trials.hypergradients.method import Method

BYTES = 4
PER_PARAMETER = {True: 15.0, False: 4.0}  # numbers that a traced step keeps, of an adaptive rule or not
PER_ACTIVATION = 2.0
TAPE_BITS = 1.0  # a weight and step of reversed SGD, roughly from above


def window_bytes(
    method: Method,
    *,
    parameters: float,
    activations: float,
    batch: int,
    adaptive: bool = False,
    coordinates: int = 1,
) -> float:
    """Bytes that one lane holds at most during a move.

    Args:
        parameters: numbers of the network as it is laid out.
        activations: numbers of one example's forward pass.
        coordinates: how many numbers move.
    """
    step = PER_PARAMETER[adaptive] * parameters + PER_ACTIVATION * batch * activations
    traced, kept = 1.0, 0.0
    if method.kind == "unrolled":
        traced = float(method.every)
        if method.checkpoints:
            traced = float(math.isqrt(max(method.every - 1, 0)) + 1)
            kept = traced * (5.0 if adaptive else 2.0) * parameters
    elif method.kind == "truncated":
        traced = float(method.horizon)
    elif method.kind in ("forward", "hypernet"):  # tangents of weights and state, or responses
        kept = coordinates * (5.0 if adaptive else 2.0) * parameters
    elif method.kind == "reversible":
        kept = parameters * (10.0 + TAPE_BITS * method.every / 32)
    return BYTES * (traced * step + kept)


def physical_memory() -> float:
    """The bytes of memory that this machine has."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def lighter(method: Method) -> list[Method]:
    """Methods that see the same and hold less, lightest last."""
    found = [replace(method, checkpoints=True)] if method.kind == "unrolled" and not method.checkpoints else []
    return [*found, Method(kind="reversible", every=method.every)] if method.kind in ("unrolled", "truncated") else []
