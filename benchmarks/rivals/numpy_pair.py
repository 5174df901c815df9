"""Worker processes of serial numpy: the training written out by hand, as well as a competent person writes it.

Float32 throughout, exact widths, no allocation in the step: all weights lie in one flat buffer, so that momentum and
update are four calls; biases are a column of the weights, and activations carry a row of ones for it; every product
writes where it belongs. Nothing is shared but the list of trials.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals import Inputs, Trained, error_rate, evaluation_steps

_inputs: dict[str, Any] = {}


class Network:
    """Weights [out, 1 + in] (bias first) and velocity of a two-hidden-layer relu network, and the buffers of a step."""

    def __init__(self, weights: list[np.ndarray], batch: int) -> None:
        sizes = [weights[0].shape[1], *(w.shape[0] for w in weights)]
        shapes = [(b, a + 1) for a, b in pairwise(sizes)]
        ends = np.cumsum([rows * columns for rows, columns in shapes]).tolist()
        self.flat, self.flat_gradient, self.velocity = (np.zeros(ends[-1], np.float32) for _ in range(3))

        def cut(buffer: np.ndarray) -> list[np.ndarray]:
            return [buffer[end - r * c : end].reshape(r, c) for end, (r, c) in zip(ends, shapes, strict=True)]

        self.weights, self.gradients = cut(self.flat), cut(self.flat_gradient)
        for own, given in zip(self.weights, weights, strict=True):
            own[:, 1:] = given
        self.hidden = [np.ones((n + 1, batch), np.float32) for n in sizes[1:-1]]
        self.units = [h[1:] for h in self.hidden]
        self.deltas = [np.empty((n, batch), np.float32) for n in sizes[1:-1]]
        self.alive = [np.empty((n, batch), bool) for n in sizes[1:-1]]
        self.logits = np.empty((sizes[-1], batch), np.float32)
        self.down = [w[:, 1:].T for w in self.weights[1:]]
        self.hidden_T = [h.T for h in self.hidden]
        self.largest, self.total = np.empty((1, batch), np.float32), np.empty((1, batch), np.float32)
        self.share = np.float32(1.0 / batch)

    def gradient(self, x: np.ndarray, target: np.ndarray) -> None:
        """The gradient into `flat_gradient`: `x` [batch, 1 + inputs], `target` [batch, classes] one-hot / batch."""
        (w0, w1, w2), (g0, g1, g2) = self.weights, self.gradients
        (h0, h1), (u0, u1), (d0, d1), (a0, a1) = self.hidden, self.units, self.deltas, self.alive
        (h0_T, h1_T), (w1_T, w2_T) = self.hidden_T, self.down
        z, largest, total = self.logits, self.largest, self.total
        np.dot(w0, x.T, out=u0)
        np.maximum(u0, 0, out=u0)
        np.dot(w1, h0, out=u1)
        np.maximum(u1, 0, out=u1)
        np.dot(w2, h1, out=z)
        z -= np.maximum.reduce(z, 0, keepdims=True, out=largest)
        np.exp(z, out=z)
        np.add.reduce(z, 0, keepdims=True, out=total)
        np.divide(self.share, total, out=total)
        z *= total
        z -= target.T
        np.dot(z, h1_T, out=g2)
        np.dot(w2_T, z, out=d1)
        d1 *= np.greater(u1, 0, out=a1)
        np.dot(d1, h0_T, out=g1)
        np.dot(w1_T, d1, out=d0)
        d0 *= np.greater(u0, 0, out=a0)
        np.dot(d0, x, out=g0)

    def update(self, lr: np.float32, momentum: np.float32) -> None:
        """One step of SGD with momentum; `flat_gradient` is overwritten."""
        self.velocity *= momentum
        self.velocity += self.flat_gradient
        np.multiply(self.velocity, lr, out=self.flat_gradient)
        self.flat -= self.flat_gradient

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Logits [rows, classes] of `x` [rows, 1 + inputs]."""
        h = x
        for w in self.weights[:-1]:
            h = with_ones(np.maximum(h @ w.T, 0))
        logits: np.ndarray = h @ self.weights[-1].T
        return logits


def with_ones(x: np.ndarray) -> np.ndarray:
    """`x` with a leading column of ones."""
    return np.concatenate([np.ones((len(x), 1), np.float32), x], axis=1)


def prepared(inputs: Inputs) -> dict[str, Any]:
    """What all trials share, laid out for `train`."""
    batch = inputs["order"].shape[1]
    return {
        "inputs": inputs,
        "x": with_ones(inputs["x"]),
        "targets": np.eye(inputs["y"].max() + 1, dtype=np.float32)[inputs["y"]] / np.float32(batch),
        "selection_x": with_ones(inputs["selection_x"]),
    }


def train(shared: dict[str, Any], number: int) -> tuple[float, Network]:
    """One trial from its beginning to its end: its selection error, and the network."""
    inputs, x, targets = shared["inputs"], shared["x"], shared["targets"]
    order = inputs["order"]
    steps, batch = order.shape
    network = Network(inputs.weights(number), batch)
    lr, momentum = np.float32(inputs["lr"][number]), np.float32(inputs["momentum"][number])
    x_batch, target_batch = np.empty((batch, x.shape[1]), np.float32), np.empty((batch, targets.shape[1]), np.float32)
    measured, error = evaluation_steps(steps), float("nan")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for step, rows in enumerate(order, 1):
            x.take(rows, 0, x_batch, "clip")  # clip: the default checks bounds through a copy
            targets.take(rows, 0, target_batch, "clip")
            network.gradient(x_batch, target_batch)
            network.update(lr, momentum)
            if step in measured:
                error = error_rate(network.predict(shared["selection_x"]), inputs["selection_y"])
    return error, network


def _begin(inputs: Inputs) -> None:
    _inputs.update(prepared(inputs))


def _one(number: int) -> Trained:
    started = time.time()
    error, _ = train(_inputs, number)
    return Trained(number=number, val_error=error, started=started, ended=time.time(), worker=str(os.getpid()))


def replay(path: Path, count: int, workers: int) -> list[Trained]:
    """The first `count` points in `workers` processes, handed out one by one."""
    with multiprocessing.get_context("spawn").Pool(workers, _begin, (Inputs.load(path),)) as pool:
        return list(pool.imap_unordered(_one, range(count)))
