"""The logit without heterogeneity, on the host: mean utilities, and shares of products within their groups.

`blpjax.model.inversion.closed_form` is the same in compiled programs, where shares may be traced.
"""

from typing import NamedTuple

import numpy as np


def closed_form_delta(
    shares: np.ndarray, markets: np.ndarray, nesting_ids: np.ndarray | None = None, rho: np.ndarray | None = None
) -> np.ndarray:
    """(N,) mean utilities of the logit, ``log S_j - log S_0``, less ``rho log(S_j / S_h)`` with nests (Berry 1994).

    `markets` (N,) are codes of markets, and `rho` is (1,), or (H,) in the sorted order of `nesting_ids`.
    """
    delta: np.ndarray = np.log(shares) - np.log1p(-np.bincount(markets, weights=shares)[markets])
    if nesting_ids is None or rho is None:
        return delta
    found = log_shares_within(shares, markets, nesting_ids)
    return delta - (rho if rho.size == 1 else rho[found.nests]) * found.values


class SharesWithin(NamedTuple):
    """Logarithms (N,) of products' shares within their groups, and codes of groups in the sorted order of IDs."""

    values: np.ndarray
    nests: np.ndarray


def log_shares_within(shares: np.ndarray, markets: np.ndarray, nesting_ids: np.ndarray) -> SharesWithin:
    """``log(S_j / S_h)`` for codes of markets (N,) and IDs of groups (N,)."""
    nests = np.unique(nesting_ids, return_inverse=True)[1].reshape(-1)
    groups = np.unique(markets * (nests.max() + 1) + nests, return_inverse=True)[1]
    return SharesWithin(np.log(shares) - np.log(np.bincount(groups, weights=shares)[groups]), nests)
