"""Conditions of first and second order for the profits of every firm in every market."""

from typing import Any

import numpy as np

from blpjax.economy.buckets import MarketIndex
from blpjax.inputs import records


class FirmConditions:
    """Profit gradients and Hessians by market and firm: arrays of all firms together, dictionaries when asked for.

    Parameters
    ----------
    index : rows of each market in the product table.
    firm_ids : (N,) who sets the price of each product.
    gradient : (N,) first-order condition of each product's price, or None.
    hessians : (N, max J) derivatives of these conditions in the prices of the market's products, or None.
    """

    def __init__(
        self, index: MarketIndex, firm_ids: np.ndarray, gradient: np.ndarray | None, hessians: np.ndarray | None
    ) -> None:
        firms, firm_codes = np.unique(firm_ids, return_inverse=True)
        market_codes = index.codes
        self._order = np.lexsort((firm_codes.reshape(-1), market_codes))
        keys = np.column_stack([market_codes, firm_codes.reshape(-1)])[self._order]
        self._starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        self._sizes = np.diff(np.r_[self._starts, len(keys)])
        self._keys = keys[self._starts]
        self._market_ids, self._firm_ids = records.as_objects(index.ids), records.as_objects(firms)
        self._places = np.concatenate([np.arange(rows.size) for rows in index.rows])[
            np.argsort(np.concatenate(index.rows))
        ]
        self._gradient, self._hessians = gradient, hessians
        #: (firms in all markets,) largest absolute first-order condition of each firm, None without gradients.
        self.gradient_norms = None
        if gradient is not None:
            self.gradient_norms = np.maximum.reduceat(np.abs(gradient[self._order]), self._starts)
        #: (N,) eigenvalues of firms' Hessians, firm after firm, ascending; None without Hessians.
        self.eigenvalues = None if hessians is None else self._compute_eigenvalues(hessians)

    def gradients_by_firm(self) -> dict[Any, dict[Any, np.ndarray]] | None:
        """Profit gradients of firms by market and firm ID."""
        if self._gradient is None:
            return None
        gradient = self._gradient[self._order]
        return self._by_firm(lambda f, part: gradient[part])

    def norms_by_firm(self) -> dict[Any, dict[Any, float]] | None:
        """Largest absolute elements of profit gradients by market and firm ID."""
        norms = self.gradient_norms
        return None if norms is None else self._by_firm(lambda f, part: norms[f])

    def hessians_by_firm(self) -> dict[Any, dict[Any, np.ndarray]] | None:
        """Hessians of firms' profits by market and firm ID."""
        hessians = self._hessians
        if hessians is None:
            return None

        def block(f: int, part: slice) -> np.ndarray:
            rows = self._order[part]
            return hessians[rows[:, None], self._places[rows]]

        return self._by_firm(block)

    def eigenvalues_by_firm(self) -> dict[Any, dict[Any, np.ndarray]] | None:
        """Eigenvalues of firms' profit Hessians by market and firm ID."""
        eigenvalues = self.eigenvalues
        return None if eigenvalues is None else self._by_firm(lambda f, part: eigenvalues[part])

    def _by_firm(self, pick: Any) -> dict[Any, dict[Any, Any]]:
        found: dict[Any, dict[Any, Any]] = {market: {} for market in self._market_ids}
        for f, (start, size, (market, firm)) in enumerate(zip(self._starts, self._sizes, self._keys, strict=True)):
            found[self._market_ids[market]][self._firm_ids[firm]] = pick(f, slice(start, start + size))
        return found

    def _compute_eigenvalues(self, hessians: np.ndarray) -> np.ndarray:
        """All firms with equally many products at once. NaN where prices are.

        Where firms own parts of others a block need not be symmetric: whether it is definite depends on its symmetric
        part.
        """
        eigenvalues = np.full(self._order.size, np.nan)
        for size in np.unique(self._sizes):
            places = self._starts[self._sizes == size][:, None] + np.arange(size)
            rows = self._order[places]
            blocks = hessians[rows[:, :, None], self._places[rows][:, None, :]]
            known = np.isfinite(blocks).all(axis=(1, 2))
            symmetric = (blocks[known] + blocks[known].swapaxes(1, 2)) / 2
            eigenvalues[places[known]] = np.linalg.eigvalsh(symmetric)
        return eigenvalues
