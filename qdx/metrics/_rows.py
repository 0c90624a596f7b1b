"""Take the difference of rows, in which tokens that are impossible in both do not count, and sum rows."""

from __future__ import annotations

import torch
from torch import Tensor


def difference(p_PV: Tensor, q_PV: Tensor) -> Tensor:
    """Return ``p − q`` elementwise, 0 where both are −inf (impossible in both rows), as a tensor of its own.

    One −inf against a finite number stays infinite. NaN stays NaN.
    """
    d_PV = p_PV - q_PV
    # inf − inf is the only new NaN; the sum finds it for a tenth of what comparing all elements costs.
    if d_PV.sum().isnan():
        d_PV.masked_fill_(p_PV == q_PV, 0.0)
    return d_PV


def dot(a_PV: Tensor, b_PV: Tensor) -> Tensor:
    """Return Σ_v a_v b_v of every row.

    As a matrix product: `torch.linalg.vecdot` writes the products to memory first, at twice the cost.
    """
    return torch.bmm(a_PV[:, None, :], b_PV[:, :, None]).flatten()
