"""Images as they vary from step to step: mirrored, and moved by whole pixels.

    >>> noise_B3 = augment_noise(seed=0, number=17, replicate=0, step=3, batch=64)
    >>> augmented(x_BCHW, noise_B3, Augment(flip=True, shift=2))     # [64, C, H, W]

How a row varies is a function of the trial, the step and the row's place in its batch, so that a trial's result does
not depend on its bundle.

Legend of shape suffixes: B batch, C channels, H height, W width, N = H * W; further axes may lead (lanes).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trials.noise import fold, uniform
from trials.tasks import Augment


def augment_noise(
    seed: int, number: int, replicate: int, step: int, batch: int, device: torch.device | str = "cpu"
) -> Tensor:
    """What one trial's batch of one step is varied by: numbers in [0, 1), float32 [B, 3]."""
    return uniform(fold(seed, "augment", number, replicate, step), batch, 3, device)


def augmented(x_BCHW: Tensor, noise_B3: Tensor, augment: Augment) -> Tensor:
    """Each image mirrored where its first number is below a half, then moved down and to the right by what its other
    two say, from -shift to shift. What comes in from outside is 0, the mean of normalised images."""
    height, width = x_BCHW.shape[-2:]
    # in float32, a number just below 1 could be rounded up to a place too far
    moves_B2 = (noise_B3[..., 1:].double() * (2 * augment.shift + 1)).long() - augment.shift
    y_BH = torch.arange(height, device=x_BCHW.device) - moves_B2[..., :1]
    x_BW = torch.arange(width, device=x_BCHW.device) - moves_B2[..., 1:]
    inside_BHW = ((y_BH >= 0) & (y_BH < height)).unsqueeze(-1) & ((x_BW >= 0) & (x_BW < width)).unsqueeze(-2)
    if augment.flip:
        x_BW = torch.where(noise_B3[..., :1] < 0.5, width - 1 - x_BW, x_BW)
    places_BHW = y_BH.clamp(0, height - 1).unsqueeze(-1) * width + x_BW.clamp(0, width - 1).unsqueeze(-2)
    places_BCN = places_BHW.flatten(-2).unsqueeze(-2).expand(*x_BCHW.shape[:-2], height * width)
    moved_BCHW = x_BCHW.flatten(-2).gather(-1, places_BCN).view(x_BCHW.shape)
    return moved_BCHW.masked_fill_(~inside_BHW.unsqueeze(-3), 0.0)
