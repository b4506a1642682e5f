"""Conduct: how firms compete, as a function of one market's demand that returns markups.

In formulas, s are shares, ``D_jk = ds_j / dp_k`` derivatives of demand, ``H_jk`` the weight of product k's profits for
the owner of j, o the elementwise product and m markups ``p - c``. Another conduct is another class here with a method
`markups`, or a function that is given to `conduct` or `conditions`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.kernels.conduct_parameters import Parameter
from blpjax.kernels.linear_algebra import solve
from blpjax.kernels.markups import markup_matrix, price_derivatives
from blpjax.kernels.priced_market import Owners, PricedMarket, Retail


class Conduct(eqx.Module):
    """How firms compete. Subclasses have a method `markups`; the others have defaults."""

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """Markups ``p - c`` (J,) at the market's prices, in their units."""
        raise NotImplementedError

    def markup_slopes(self, market: PricedMarket) -> Float[Array, "J J"]:
        """Derivatives ``dm_j / dp_k`` of markups in prices."""
        return market.price_derivatives(self.markups)

    def check(self, column: Callable[[str, Callable[[Any], Any], str], None]) -> None:
        """Check columns of product data: ``column(name, allowed, words)`` refuses rows where `allowed` is false."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def taxable(self) -> bool:
        """Whether profit weights are all that ad valorem taxes change in it."""
        return True


class PriceSetting(Conduct):
    """Firms that set prices with some profit weights H: ``m = -(H o D')^{-1} s``.

    Equilibrium prices of these are found by the zeta-markup equation (`blpjax.kernels.equilibrium`).
    """

    def weights_in(self, market: PricedMarket) -> Float[Array, "J J"]:
        """Profit weights H."""
        raise NotImplementedError

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """See the class."""
        return -solve(self.weights_in(market) * market.jacobian().T, market.shares())

    def markup_slopes(self, market: PricedMarket) -> Float[Array, "J J"]:
        """By the first-order conditions ``A m = s``: ``A^{-1} (ds / dp - dA / dp m)``."""
        H, m, (point, curvature) = self.weights_in(market), self.markups(market), market.curved()
        found = price_derivatives(point, curvature, H, m)
        return solve(markup_matrix(point, H), found.shares - found.markup_product)


class Bertrand(PriceSetting):
    """Firms set prices: ``m = -(H o D')^{-1} s``.

    Parameters
    ----------
    ownership : the column of product data with owners' IDs. ``'ownership'`` stands for the ownership matrices there.
    weights : how much firms weigh the profits of others: a number, a mapping ``{(f, g): weight of g's profits for f}``
        in which what is not named is zero, or ownership matrices (N, max J), stacked by market. Numbers may be a
        `Parameter`, by default between zero and one.

    Raises
    ------
    TypeError, ValueError
        When these are something else.
    """

    owners: Owners

    def __init__(self, ownership: str = "firm_ids", weights: Any = None) -> None:
        self.owners = _owners(ownership, weights)

    def weights_in(self, market: PricedMarket) -> Float[Array, "J J"]:
        """Ownership."""
        return market.ownership(self.owners)


class Monopoly(PriceSetting):
    """All prices of a market maximise joint profits: Bertrand with an H of ones."""

    def weights_in(self, market: PricedMarket) -> Float[Array, "J J"]:
        """Ones."""
        return market.weighted(jnp.ones((market.prices.size, market.prices.size)))


class ResalePriceMaintenance(PriceSetting):
    """Two tiers with two-part tariffs, one of which has no margin, so that the other one's Bertrand margins remain.

    Parameters
    ----------
    zero : ``'wholesale'``: wholesale prices are costs, and retailers set prices; ``'retail'``: manufacturers set them.
    retail, wholesale : columns of product data with the IDs of retailers and manufacturers.
    """

    owners: Owners

    def __init__(self, zero: str, retail: str = "retailer_ids", wholesale: str = "manufacturer_ids") -> None:
        if zero not in ("wholesale", "retail"):
            raise ValueError(f"zero must be 'wholesale' or 'retail', the tier without margins, not {zero!r}.")
        self.owners = _owners(retail if zero == "wholesale" else wholesale, None)

    def weights_in(self, market: PricedMarket) -> Float[Array, "J J"]:
        """Ownership of the tier that has margins."""
        return market.ownership(self.owners)


class PerfectCompetition(Conduct):
    """Prices are costs."""

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """Zeros."""
        return jnp.zeros_like(market.prices)


class Cournot(Conduct):
    """Firms set quantities: ``m = -(H o (D^{-1})') s``.

    Parameters are those of `Bertrand`.
    """

    owners: Owners

    def __init__(self, ownership: str = "firm_ids", weights: Any = None) -> None:
        self.owners = _owners(ownership, weights)

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """See the class: ``p_j - c_j + sum_k H_jk s_k dp_k / dq_j = 0``."""
        return -(market.ownership(self.owners) * market.inverse(market.jacobian()).T) @ market.shares()


class Mixed(Conduct):
    """Some products C are sold by quantity, the others B by price. Firms may own both kinds.

    With ``E = D_BC D_CC^{-1}``, ``S = D_BB - E D_CB`` and ``R = -D_CC^{-1} D_CB`` markups solve
    ``(H_BB o S') m_B = -s_B - (H_BC o R') s_C`` and ``m_C = -(H_CC o (D_CC^{-1})') s_C - (H_CB o E') m_B``.

    Parameters
    ----------
    quantity : a column of product data that is one (or true) for products sold by quantity, zero for others.
    ownership, weights : see `Bertrand`.
    """

    quantity: str = eqx.field(static=True)
    owners: Owners

    def __init__(self, quantity: str, ownership: str = "firm_ids", weights: Any = None) -> None:
        self.quantity = _column("quantity", quantity)
        self.owners = _owners(ownership, weights)

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """See the class."""
        s, D, H = market.shares(), market.jacobian(), market.ownership(self.owners)
        C = (market.column(self.quantity) > 0) & market.present
        B = ~C
        inverse = jnp.where(_pairs(C, C), market.inverse(_block(D, C)), 0.0)
        E = jnp.where(_pairs(B, C), D, 0.0) @ inverse
        D_CB = jnp.where(_pairs(C, B), D, 0.0)
        R = -inverse @ D_CB
        s_C = jnp.where(C, s, 0.0)
        m_B = market.solve(_block(H * (D - E @ D_CB).T, B), jnp.where(B, -s - (H * R.T) @ s_C, 0.0))
        return jnp.where(C, -(H * inverse.T) @ s_C - (H * E.T) @ m_B, m_B)

    def check(self, column: Callable[[str, Callable[[Any], Any], str], None]) -> None:
        """The column has zeros and ones."""
        column(self.quantity, _is_flag, _FLAG)


class Stackelberg(Conduct):
    """Leaders L set prices first, followers F react: both as `Bertrand`, but leaders know how followers will.

    With ``m_F = -(H_FF o D_FF')^{-1} s_F`` and the answers ``R = dp_F / dp_L`` that followers' conditions imply,
    ``m_L = -(H_LL o (D_LL + D_LF R)')^{-1} s_L``. All products of a firm should lead, or all follow.

    Parameters
    ----------
    leaders : a column of product data that is one (or true) for products of leaders, zero for others.
    ownership, weights : see `Bertrand`.
    """

    leaders: str = eqx.field(static=True)
    owners: Owners

    def __init__(self, leaders: str, ownership: str = "firm_ids", weights: Any = None) -> None:
        self.leaders = _column("leaders", leaders)
        self.owners = _owners(ownership, weights)

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """See the class."""
        L = (market.column(self.leaders) > 0) & market.present
        M = market.price_derivatives(partial(self._of_followers, L))
        # followers' prices are costs plus m_F(p)
        R = market.solve(_block(jnp.eye(L.size) - M, ~L), jnp.where(_pairs(~L, L), M, 0.0))
        D, H, s = market.jacobian(), market.ownership(self.owners), market.shares()
        led = _block(H * (D + jnp.where(_pairs(L, ~L), D, 0.0) @ R).T, L)
        return self._of_followers(L, market) - market.solve(led, jnp.where(L, s, 0.0))

    def _of_followers(self, L: Array, market: PricedMarket) -> Array:
        """Bertrand markups of followers among themselves, zero for leaders."""
        A = _block(market.ownership(self.owners) * market.jacobian().T, ~L)
        return -market.solve(A, jnp.where(L, 0.0, market.shares()))

    def check(self, column: Callable[[str, Callable[[Any], Any], str], None]) -> None:
        """The column has zeros and ones."""
        column(self.leaders, _is_flag, _FLAG)


class TwoTier(Conduct):
    """Manufacturers set wholesale prices, then retailers set retail prices (Villas-Boas 2007).

    Markups are the sum of both tiers'. Retailers have those of their conduct, ``m_d(p)``, so that retail prices follow
    wholesale prices by ``dp / dw = (I - dm_d / dp)^{-1}``, and manufacturers those of theirs in the demand
    ``D_w = D dp / dw``. With Bertrand in both, ``m = -(H_d o D')^{-1} s - (H_u o D_w')^{-1} s``.

    Equilibrium prices need third derivatives of demand, one of them for each product: large markets take long.

    Parameters
    ----------
    retail, wholesale : the conduct of each tier. That of manufacturers must not need second derivatives of demand.
    integrated : a column of product data that is one (or true) for products that retailers make themselves, such as
        store brands; zero for others. Their wholesale markups are set to zero. Markups of others are as if there were
        some, which matters where a manufacturer has both kinds: then give those that retailers make other IDs.
    """

    retail: Conduct
    wholesale: Conduct
    integrated: str | None = eqx.field(static=True)

    def __init__(
        self, retail: Conduct | None = None, wholesale: Conduct | None = None, integrated: str | None = None
    ) -> None:
        self.retail = check_conduct(Bertrand("retailer_ids") if retail is None else retail, "retail")
        self.wholesale = check_conduct(Bertrand("manufacturer_ids") if wholesale is None else wholesale, "wholesale")
        self.integrated = None if integrated is None else _column("integrated", integrated)

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """See the class."""
        passthrough = market.inverse(jnp.eye(market.prices.size) - self.retail.markup_slopes(market))
        m_d = self.retail.markups(market)
        upstream = dataclasses.replace(market, prices=market.prices - m_d, retail=Retail(market.prices, passthrough))
        m_u = jnp.where(market.present, self.wholesale.markups(upstream), 0.0)
        if self.integrated is not None:
            m_u = jnp.where(market.column(self.integrated) > 0, 0.0, m_u)
        return m_d + m_u

    def check(self, column: Callable[[str, Callable[[Any], Any], str], None]) -> None:
        """Columns of both tiers, and zeros and ones."""
        self.retail.check(column)
        self.wholesale.check(column)
        if self.integrated is not None:
            column(self.integrated, _is_flag, _FLAG)

    @property
    def taxable(self) -> bool:
        """Whether both tiers are."""
        return self.retail.taxable and self.wholesale.taxable


class Bargaining(Conduct):
    """Retailers and manufacturers bargain over wholesale prices while retailers set prices (Draganska et al. 2010).

    Nash in Nash with simultaneous retail prices: with ``S_jk = s_k - s_k(without j)``, retail markups
    ``m_d = -(H_d o D')^{-1} s`` and the retailer's weight b, ``b_j [(H_u o S) m_u]_j = (1 - b_j) [(H_d o S) m_d]_j``.
    Markups are ``m_d + m_u``. With b = 1 they are retailers' Bertrand markups.

    Parameters
    ----------
    retail, wholesale : columns of product data with the IDs of retailers and manufacturers.
    power : b, a number above zero and at most one, a column of product data with such numbers, or a `Parameter`, by
        default at least 0.01.
    """

    retail: Owners
    wholesale: Owners
    power: Any
    power_column: str | None = eqx.field(static=True)

    def __init__(self, retail: str = "retailer_ids", wholesale: str = "manufacturer_ids", power: Any = 0.5) -> None:
        self.retail, self.wholesale = _owners(retail, None), _owners(wholesale, None)
        self.power, self.power_column = _number_or_column("power", power, (SMALLEST, 1.0))
        if isinstance(self.power, float) and not 0 < self.power <= 1:
            raise ValueError(f"power must be above zero and at most one, not {power!r}.")

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """See the class."""
        b = self.power if self.power_column is None else market.column(self.power_column)
        b = jnp.broadcast_to(b, market.prices.shape)[:, None]
        H_d, H_u, S = market.ownership(self.retail), market.ownership(self.wholesale), market.disagreement()
        m_d = -market.solve(H_d * market.jacobian().T, market.shares())
        b = jnp.where(market.present[:, None], b, 1.0)
        return m_d + market.solve(b * H_u * S, ((1.0 - b) * H_d * S) @ m_d)

    def check(self, column: Callable[[str, Callable[[Any], Any], str], None]) -> None:
        """Powers are above zero and at most one."""
        if self.power_column is not None:
            column(self.power_column, lambda b: (b > 0) & (b <= 1), "be above zero and at most one")


class RuleOfThumb(Conduct):
    """Prices are a multiple of costs, ``p = phi c``: ``m = (phi - 1) / phi p``.

    Parameters
    ----------
    phi : a number above zero, a column of product data with such numbers, or a `Parameter`, by default at least 0.01.
    """

    phi: Any
    phi_column: str | None = eqx.field(static=True)

    def __init__(self, phi: Any) -> None:
        self.phi, self.phi_column = _number_or_column("phi", phi, (SMALLEST, math.inf))
        if isinstance(self.phi, float) and not self.phi > 0:
            raise ValueError(f"phi must be above zero, not {phi!r}.")

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """See the class."""
        phi = self.phi if self.phi_column is None else market.column(self.phi_column)
        return (1.0 - 1.0 / phi) * market.prices

    def check(self, column: Callable[[str, Callable[[Any], Any], str], None]) -> None:
        """Multiples are above zero."""
        if self.phi_column is not None:
            column(self.phi_column, lambda phi: phi > 0, "be above zero")

    @property
    def taxable(self) -> bool:
        """It does not say whether a multiple is one of taxed prices."""
        return False


class ConstantMarkup(Conduct):
    """Markups that are given, in units of prices.

    Parameters
    ----------
    markup : a number, a column of product data, or a `Parameter`.
    """

    markup: Any
    markup_column: str | None = eqx.field(static=True)

    def __init__(self, markup: Any) -> None:
        self.markup, self.markup_column = _number_or_column("markup", markup, (-math.inf, math.inf))

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """What was given."""
        if self.markup_column is not None:
            return market.column(self.markup_column)
        return jnp.broadcast_to(jnp.asarray(self.markup, float), market.prices.shape)

    @property
    def taxable(self) -> bool:
        """It does not say whether a markup is one of taxed prices."""
        return False


def check_conduct(conduct: Any, argument: str = "conduct") -> Conduct:
    """A conduct, or `TypeError` that names the argument."""
    if not isinstance(conduct, Conduct):
        hint = " Use blpjax.conduct(function)." if callable(conduct) and not isinstance(conduct, type) else ""
        hint = f" Call it: {conduct.__name__}(...)." if isinstance(conduct, type) else hint
        raise TypeError(f"{argument} must be a conduct such as blpjax.Cournot(), not {conduct!r}.{hint}")
    return conduct


# blocks of matrices


def _pairs(rows: Array, columns: Array) -> Array:
    return rows[:, None] & columns[None, :]


def _block(matrix: Array, some: Array) -> Array:
    """The matrix between some products, and the identity for others."""
    return jnp.where(_pairs(some, some), matrix, jnp.eye(some.size))


# arguments

#: What parameters that have to be above zero are at least by default.
SMALLEST = 0.01

#: Default bounds of profit weights that are parameters.
_WEIGHTS = (0.0, 1.0)

_FLAG = "be zero or one"


def _is_flag(values: Any) -> Any:
    return (values == 0) | (values == 1)


def _column(argument: str, name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be the name of a column of product data, not {name!r}.")
    return name


def _number_or_column(argument: str, value: Any, bounds: tuple[float, float]) -> tuple[Any, str | None]:
    if isinstance(value, str):
        return None, value
    return _number(argument, value, "a number, the name of a column of product data, or a Parameter", bounds), None


def _number(argument: str, value: Any, expected: str, bounds: tuple[float, float]) -> float | Parameter:
    """A number, or a parameter with these default bounds."""
    if isinstance(value, Parameter):
        return value.within(*bounds)
    if isinstance(value, bool) or not hasattr(value, "__float__") or getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{argument} must be {expected}, not {value!r}.")
    if not math.isfinite(float(value)):
        raise ValueError(f"{argument} must be finite, not {value!r}.")
    return float(value)


def _owners(ownership: Any, weights: Any) -> Owners:
    name = _column("ownership", ownership)
    if isinstance(weights, Mapping):
        found = {}
        for pair, weight in weights.items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"weights must have pairs of owners such as (1, 2), not {pair!r}.")
            found[pair] = _number(f"weights[{pair!r}]", weight, "a number or a Parameter", _WEIGHTS)
        return Owners(name, found)
    if weights is None or getattr(weights, "ndim", 0) == 2:
        return Owners(name, weights)
    expected = "a number, a mapping of pairs of owners, matrices (N, max J), or a Parameter"
    return Owners(name, _number("weights", weights, expected, _WEIGHTS))
