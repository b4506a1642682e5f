"""The logit without heterogeneity, on the host: mean utilities, and shares of products within their groups.

`blpjax.model.inversion.closed_form` is the same in compiled programs, where shares may be traced.
"""

import numpy as np

from blpjax.inputs.nesting import Nesting


def closed_form_delta(
    shares: np.ndarray, markets: np.ndarray, nesting: Nesting | None = None, rho: np.ndarray | None = None
) -> np.ndarray:
    """(N,) mean utilities of the logit, ``log S_j - log S_0``, less ``rho log(S_j / S_h)`` with nests (Berry 1994).

    With groups within groups that is ``rho log(S_j / S_h) + nu log(S_h / S_g)`` (Verboven 1996). `markets` (N,) are
    codes of markets, and `rho` has an element for each level of nests or for each of their groups.
    """
    delta: np.ndarray = np.log(shares) - np.log1p(-np.bincount(markets, weights=shares)[markets])
    if nesting is None or rho is None:
        return delta
    values = log_shares_within(shares, markets, nesting)
    levels = values.shape[1]
    return delta - ((rho[::-1] if rho.size == levels else rho[nesting.codes]) * values).sum(axis=1)


def log_shares_within(shares: np.ndarray, markets: np.ndarray, nesting: Nesting) -> np.ndarray:
    """``log(S_j / S_h)`` and, with groups within groups, ``log(S_h / S_g)`` (N, levels)."""
    logarithms = [np.log(shares)]
    for codes in nesting.codes.T:
        groups = np.unique(markets * (codes.max() + 1) + codes, return_inverse=True)[1].reshape(-1)
        logarithms.append(np.log(np.bincount(groups, weights=shares)[groups]))
    return -np.diff(np.column_stack(logarithms), axis=1)
