"""Taxes and subsidies on products."""

import dataclasses
from typing import Any

import numpy as np

from blpjax.inputs.arguments import check_choice


@dataclasses.dataclass(frozen=True)
class Taxes:
    """Taxes on products: numbers, or arrays (N,) with one for each product. Subsidies are negative.

    Parameters
    ----------
    unit : t, in units of prices.
    ad_valorem : a, a fraction.
    base : of what the fraction is. With ``'net'``, of what firms get: consumers pay ``p = (1 + a) (r + t)`` where firms
        get r. With ``'price'``, of what consumers pay: ``r = (1 - a) p - t``.
    consumers : what some consumers pay beyond the price, in units of prices; firms get the whole price. Text, such as
        ``'-0.3 * (income < 0)'``, or ``'-0.3 * (income < 0) * electric'`` with a column of products, in the language of
        `MicroMoment`; a function of the table of agents, such as ``lambda agents: -0.3 * (agents["income"] < 0)``; or
        an array by rows of agents (I,), perhaps with a column for each product of their market (I, max J). For
        utilities that are linear in prices.

    Raises
    ------
    ValueError
        When `base` is something else, or when taxes leave firms nothing.
    """

    unit: Any = 0.0
    ad_valorem: Any = 0.0
    base: str = "net"
    consumers: Any = None

    def __post_init__(self) -> None:
        check_choice("base", self.base, ("net", "price"))
        rates = np.asarray(self.ad_valorem, float)
        if not (np.isfinite(rates).all() and np.isfinite(np.asarray(self.unit, float)).all()):
            raise ValueError("Taxes must be finite numbers.")
        if (rates <= -1).any() if self.base == "net" else (rates >= 1).any():
            limit = "above -1" if self.base == "net" else "below 1"
            raise ValueError(f"ad_valorem must be {limit} with base={self.base!r}.")

    @property
    def kept(self) -> np.ndarray:
        """Which part of a price firms get before unit taxes."""
        rates = np.asarray(self.ad_valorem, float)
        return np.asarray(1 / (1 + rates) if self.base == "net" else 1 - rates)
