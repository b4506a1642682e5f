"""The equations of demand and supply as compiled programs read them, from designs, tables and fixed effects."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from blpjax.economy.characteristics import Characteristics
from blpjax.economy.conduct import ConductData
from blpjax.economy.ownership import Ownership, pack_firms
from blpjax.inputs.absorb import Absorber
from blpjax.inputs.design import Column, DesignMatrix
from blpjax.inputs.identification import check_excluded, check_instruments, check_rank
from blpjax.inputs.tables import ProductTable
from blpjax.objective.absorption import build_projection
from blpjax.objective.blocks import CovarianceMoments
from blpjax.objective.data import ModelData
from blpjax.objective.equations import Equation, Supply


class Designs(NamedTuple):
    """X1, X2 and X3, None where there is no such matrix, and what absorbs fixed effects from demand and supply."""

    X1: DesignMatrix
    X2: DesignMatrix | None
    X3: DesignMatrix | None
    demand_absorber: Absorber
    supply_absorber: Absorber


class Equations(NamedTuple):
    """Data of all moments, labels of their instruments, and how many of these are linearly independent.

    `collinear` are those of X1, X2 and X3 whose columns are not.
    """

    data: ModelData
    instrument_labels: list[str]
    instrument_rank: int
    collinear: frozenset[str]


class _Side(NamedTuple):
    """One equation with labels of its instruments, and how many of these are linearly independent.

    `independent` says whether columns of X are.
    """

    equation: Equation
    labels: list[str]
    rank: int
    independent: bool


def build_equations(
    designs: Designs,
    table: ProductTable,
    characteristics: Characteristics,
    ownership: Ownership | None,
    conduct: ConductData | None,
    *,
    logarithmic: bool,
    add_exogenous: bool,
    tolerances: tuple[float, float],
) -> Equations:
    """Absorb fixed effects, check ranks, and put data on the device.

    Costs have no bounds and covariance moments a mean of zero.

    Parameters
    ----------
    designs, table, characteristics, ownership, conduct : products. `ownership` is needed with X3 only, `conduct` where
        firms do not set prices as it says.
    logarithmic : whether X3 explains log costs.
    add_exogenous : whether columns of X1 without prices and of X3 without shares are instruments, too.
    tolerances : `options.collinear_atol` and `options.collinear_rtol`.

    Warns
    -----
    IdentificationWarning
        When X1, X2 or X3 is rank-deficient, or instruments are collinear.
    """
    X1, X2, X3 = designs[:3]
    independent = {"X2": X2 is None or check_rank(X2.values, X2.labels, "X2", None, *tolerances, warn=True)}
    excluded = table.demand_instruments, table.demand_instrument_labels
    endogenous = {"prices": table.prices, "shares": table.shares}
    check_excluded(*excluded, endogenous)
    demand = _build_side(X1, "prices", ("X1", "ZD"), excluded, designs.demand_absorber, add_exogenous, tolerances)
    independent["X1"] = demand.independent
    if X3 is None:
        return Equations(ModelData(demand.equation), demand.labels, demand.rank, _collinear(independent))
    excluded = table.supply_instruments, table.supply_instrument_labels
    check_excluded(*excluded, endogenous)
    supply = _build_side(X3, "shares", ("X3", "ZS"), excluded, designs.supply_absorber, add_exogenous, tolerances)
    independent["X3"] = supply.independent
    collinear = _collinear(independent)
    assert ownership is not None
    X1_slope, X2_slope = map(jax.device_put, jax.tree.map(np.asarray, characteristics).slopes("prices"))
    pricing = Supply(
        equation=supply.equation,
        ownership=pack_firms(ownership),
        prices=jax.device_put(table.prices),
        X1_slope=X1_slope,
        X2=jax.device_put(np.zeros((table.prices.size, 0)) if X2 is None else X2.values),
        X2_slope=X2_slope,
        costs_bounds=jax.device_put(np.array([-np.inf, np.inf])),
        logarithmic=logarithmic,
        conduct=None if conduct is None else jax.device_put(conduct),
        characteristics=None if conduct is None else characteristics,
    )
    labels, rank = demand.labels + supply.labels, demand.rank + supply.rank
    instruments = table.covariance_instruments
    if instruments.shape[1] == 0:
        return Equations(ModelData(demand.equation, pricing), labels, rank, collinear)
    more = list(table.covariance_instrument_labels)
    rank += check_instruments(instruments, more, "ZC", None, *tolerances)
    covariance = CovarianceMoments(jax.device_put(instruments), jax.device_put(np.array(0.0)))
    projections = [build_projection(absorber.ids) for absorber in (designs.demand_absorber, designs.supply_absorber)]
    data = ModelData(demand.equation, pricing).add([covariance], projections)
    return Equations(data, labels + more, rank, collinear)


def exogenous_columns(columns: Sequence[Column], endogenous: str) -> list[int]:
    """Which columns of X1 or X3 do not depend on a variable: these are instruments, after excluded ones."""
    return [k for k, column in enumerate(columns) if not column.depends_on(endogenous)]


def _build_side(
    X: DesignMatrix,
    endogenous: str,
    names: tuple[str, str],
    excluded: tuple[np.ndarray, Sequence[str]],
    absorber: Absorber,
    add_exogenous: bool,
    tolerances: tuple[float, float],
) -> _Side:
    """An equation with instruments [excluded, exogenous X]. `names` are those of X and of the instruments."""
    added = exogenous_columns(X.columns, endogenous) if add_exogenous else []
    Z = np.c_[excluded[0], X.values[:, added]]
    labels = [*excluded[1], *(X.labels[k] for k in added)]
    unabsorbed = absorber.dimensions > 0
    residuals, Z_residuals = absorber.residualize(X.values), absorber.residualize(Z)
    given = X.values if unabsorbed else None
    independent = check_rank(residuals, X.labels, names[0], given, *tolerances, warn=True)
    instruments = Z_residuals if add_exogenous else Z
    original = Z if unabsorbed and add_exogenous else None
    rank = check_instruments(instruments, labels, names[1], original, *tolerances)
    Z_device = jax.device_put(Z_residuals)
    equation = Equation(
        X=jax.device_put(residuals),
        X_unabsorbed=jax.device_put(X.values),
        Z=Z_device,
        instruments=Z_device if add_exogenous else jax.device_put(Z),
    )
    return _Side(equation, labels, rank, independent)


def _collinear(independent: Mapping[str, bool]) -> frozenset[str]:
    return frozenset(name for name, known in independent.items() if not known)
