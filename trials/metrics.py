"""What is measured of every lane at once, on the selection or the test split.

Legend of shape suffixes: K lanes, O outputs, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def measure(kind: str, logits_KOR: Tensor, y_R: Tensor, prefix: str = "val_") -> dict[str, Tensor]:
    """Metrics of each lane, name -> float64 [K].

    classification: error (share of rows wrong), accuracy, loss (mean cross-entropy).
    regression (standardised targets): mse, loss (half of it), r2.
    """
    if kind == "classification":
        wrong_K = (logits_KOR.argmax(1) != y_R).double().mean(1)
        logp_KOR = functional.log_softmax(logits_KOR.double(), 1)
        loss_K = -logp_KOR.gather(1, y_R.expand(len(logits_KOR), 1, -1)).mean((1, 2))
        # argmax of NaN is a class like any other: a lane without finite logits has no error rate
        wrong_K = torch.where(loss_K.isnan(), loss_K, wrong_K)
        return {f"{prefix}error": wrong_K, f"{prefix}loss": loss_K, f"{prefix}accuracy": 1.0 - wrong_K}
    residual_KR = logits_KOR[:, 0].double() - y_R.double()
    mse_K = residual_KR.pow(2).mean(1)
    variance = y_R.double().var(unbiased=False)
    return {f"{prefix}mse": mse_K, f"{prefix}loss": 0.5 * mse_K, f"{prefix}r2": 1.0 - mse_K / variance}
