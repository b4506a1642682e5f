"""Small objectives with sizes on a coarse grid, so that a problem with three more products finds its programs compiled.

Compilation takes seconds, and an evaluation of a small objective milliseconds: more padding costs less than another
program. Columns of X1 and X3 whose parameters are concentrated out are not in these objectives at all.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from blpjax.economy.characteristics import Characteristics
from blpjax.economy.padding import SMALL, BucketSizes, coarse_economy, coarse_sizes
from blpjax.kernels.markups import Firms
from blpjax.machine.sizes import FEWEST_MOMENTS, coarse_size, pad_axes
from blpjax.model.inversion import Inversion
from blpjax.model.parameters import Coefficients, ParameterLayout
from blpjax.objective.data import ModelData
from blpjax.objective.equations import Equation, Supply
from blpjax.objective.iv import LinearStep
from blpjax.objective.moments import GMM, Evaluation, Weighting
from blpjax.objective.structure import Costs, StructuralModel

#: How many small objectives are remembered with their coarse sizes.
KNOWN = 8


class Coarse(NamedTuple):
    """An objective of coarse sizes, with the numbers of products N, markets T and moments M of the original."""

    objective: GMM
    N: int
    T: int
    M: int

    def lengthen(self, values: Any) -> np.ndarray:
        """Values (N,) for the rows of the coarse objective."""
        return pad_axes(np.asarray(values), self.objective.model.economy.positions.shape)

    def restore(self, found: Evaluation) -> Evaluation:
        """The evaluation of the original, in NumPy's arrays."""
        N, T, M = self.N, self.T, self.M
        here: Evaluation = jax.device_get(found)
        loops = {name: values[:T] for name, values in here.inversion.fields().items()}
        costs = here.costs
        return Evaluation(
            objective=here.objective,
            gradient=here.gradient,
            residuals=here.residuals[:M],
            residual_jacobian=here.residual_jacobian[:M],
            delta_by_theta=here.delta_by_theta[:N],
            xi_by_theta=here.xi_by_theta[:N],
            omega_by_theta=None if here.omega_by_theta is None else here.omega_by_theta[:N],
            inversion=Inversion(delta=here.inversion.delta[:N], clipped=here.inversion.clipped[:N], **loops),
            costs=None if costs is None else Costs(costs.tilde_costs[:N], costs.clipped[:N], costs.status[:T]),
            ok=here.ok,
        )


#: The last small objectives, by identity: evaluations of one follow each other.
_known: dict[int, tuple[GMM, Coarse | None]] = {}


def coarsened(objective: GMM) -> Coarse | None:
    """The objective with coarse sizes; None where it is large, spread over devices, or not of levels alone."""
    sized = (objective.model.economy, objective.weighting.instruments)
    if sum(np.size(leaf) for leaf in jax.tree.leaves(sized)) > SMALL:
        return None
    kept = _known.get(id(objective))
    if kept is None:
        kept = objective, _coarsen(objective)
        while len(_known) >= KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[id(objective)] = kept
    return kept[1]


def _coarsen(objective: GMM) -> Coarse | None:
    data, economy = objective.data, objective.model.economy
    known = objective.model.specification.method.host is None
    if data.more or data.dynamics is not None or data.offset is not None or economy.placement is not None or not known:
        return None
    host: GMM = jax.tree.map(np.asarray, objective)
    N, T, M = economy.positions.size, economy.market_positions.size, objective.weighting.W.shape[0]
    sizes = coarse_sizes(host.model.economy)
    economy = coarse_economy(host.model.economy, sizes)
    rows, moments = economy.positions.size, coarse_size(M, least=FEWEST_MOMENTS)
    layout = host.model.layout
    kept = [
        [k for k in range(getattr(host.model.fixed, name).size) if k not in getattr(layout, f"concentrated_{name}")]
        for name in ("beta", "gamma")
    ]
    weights: Any = np.ones(N) if host.data.weights is None else host.data.weights
    data = _coarse_data(host.data, weights, sizes, rows, kept)
    specification = host.model.specification._replace(layout=_without_concentrated(layout, kept))
    model = StructuralModel(
        specification,
        economy,
        data,
        _fixed(host.model.fixed, kept),
        host.model.limits,
    )
    weighting = _coarse_weighting(host.weighting, rows, moments)
    return Coarse(jax.device_put(GMM(model, weighting, host.scale)), N, T, M)


def _coarse_data(
    data: ModelData, weights: Any, sizes: Sequence[BucketSizes], rows: int, kept: Sequence[Sequence[int]]
) -> ModelData:
    """Data with so many rows, of which those of no product have no weight."""

    def longer(values: Any, fill: float = 0.0) -> np.ndarray:
        return pad_axes(np.asarray(values), (rows,), fill)

    nothing, equations = np.zeros((rows, 0)), []
    for equation, columns in zip(data.equations, kept, strict=False):
        X = longer(equation.X_unabsorbed[:, columns])
        equations.append(Equation(X, X, nothing, nothing))
    supply = data.supply
    if supply is not None:
        supply = Supply(
            equation=equations[1],
            ownership=tuple(_coarse_owned(part, size) for part, size in zip(supply.ownership, sizes, strict=True)),
            prices=longer(supply.prices, 1.0),  # whose logarithm exists
            X1_slope=longer(supply.X1_slope[:, kept[0]]),
            X2=longer(supply.X2),
            X2_slope=longer(supply.X2_slope),
            costs_bounds=supply.costs_bounds,
            logarithmic=supply.logarithmic,
            conduct=None if supply.conduct is None else supply.conduct.longer(rows),
            characteristics=_coarse_characteristics(supply.characteristics, kept[0], rows),
        )
    return ModelData(equations[0], supply, weights=longer(weights))


def _coarse_characteristics(known: Characteristics | None, kept: Sequence[int], rows: int) -> Characteristics | None:
    """Those of X1 that are `kept`, and of X2. Rows of no product are those of the first one, so that formulas exist."""
    if known is None:
        return None
    variables = {name: pad_axes(np.asarray(v), (rows,), np.asarray(v)[0]) for name, v in known.variables.items()}
    return Characteristics(tuple(known.X1_columns[k] for k in kept), known.X2_columns, (), variables)


def _coarse_owned(owned: Any, size: BucketSizes) -> Any:
    if isinstance(owned, Firms):
        return Firms(pad_axes(owned.members, (size.T, size.J, coarse_size(owned.members.shape[2]))))
    return pad_axes(
        owned, (size.T, size.J, size.J) if owned.ndim == 3 else (size.T, size.J), 0 if owned.ndim == 3 else -1
    )


def _coarse_weighting(weighting: Weighting, rows: int, moments: int) -> Weighting:
    square = (moments, moments)
    step = weighting.step
    assert isinstance(step, LinearStep)
    return Weighting(
        W=np.zeros((0, 0)),
        factor=np.zeros((0, 0)),
        instruments=[pad_axes(z, (rows, moments)) for z in weighting.instruments],
        step=LinearStep(np.zeros((0, moments)), pad_axes(step.moment_map, square), step.rank),
    )


def _without_concentrated(layout: ParameterLayout, kept: Sequence[Sequence[int]]) -> ParameterLayout:
    beta, gamma = (
        tuple((columns.index(k),) for (k,) in getattr(layout, name))
        for name, columns in zip(("beta", "gamma"), kept, strict=True)
    )
    return layout._replace(beta=beta, gamma=gamma, concentrated_beta=(), concentrated_gamma=())


def _fixed(fixed: Coefficients, kept: Sequence[Sequence[int]]) -> Coefficients:
    return dataclasses.replace(fixed, beta=fixed.beta[kept[0]], gamma=fixed.gamma[kept[1]])
