"""Parameters of tastes as kernels need them, and demand of one market at given tastes."""

import equinox as eqx
from jaxtyping import Float

from blpjax.economy.buckets import Bucket
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.shares import Nests, Tastes, nests_of, tastes
from blpjax.model.parameters import Coefficients, ParameterLayout, UtilityForm


class MarketTastes(eqx.Module):
    """Parameters as kernels need them: the columns of Sigma that are not all zero, Pi, rho and tau."""

    sigma: Float[AnyArray, "K2 R"]
    pi: Float[AnyArray, "K2 D"]
    rho: Float[AnyArray, " H"]
    tau: Float[AnyArray, " S"]
    node_columns: tuple[int, ...] = eqx.field(static=True)
    form: UtilityForm = eqx.field(static=True)

    @property
    def scale(self) -> float:
        """What utilities are divided by."""
        return self.form.epsilon_scale

    def of_agents(self, market: Bucket) -> Tastes:
        """Tastes C of one market's agents."""
        C = tastes(self.sigma, self.pi, market.nodes[..., list(self.node_columns)], market.demographics)
        if not self.form.transformations:
            return C
        rows, at = [], 0
        for k, transformation in enumerate(self.form.transformations):
            row = C[..., k, :]
            if transformation is not None:
                end = at + len(transformation.parameters)
                row, at = transformation.function(row, *self.tau[at:end]), end
            rows.append(row)
        return namespace(market.nodes).stack(rows, axis=-2)

    def of_groups(self, market: Bucket) -> Nests | None:
        """Groups of one market's products with their nesting parameters."""
        if market.nests is None or market.groups is None:
            return None
        if market.parents is None or market.outer is None:
            return nests_of(market.nests, self._of_level(market.groups, 0, 1))
        outer = nests_of(market.parents, self._of_level(market.outer, 0, 2))
        return nests_of(market.nests, self._of_level(market.groups, 1, 2), outer)

    def _of_level(self, codes: AnyArray, level: int, levels: int) -> AnyArray:
        """Parameters of groups by their codes, where rho has an element for each of these, or else for each level."""
        xp = namespace(codes)
        rho = xp.asarray(self.rho)
        return rho[codes] if rho.size > levels else xp.broadcast_to(rho[level : level + 1], codes.shape)


def market_tastes(coefficients: Coefficients, layout: ParameterLayout) -> MarketTastes:
    """Pair columns of nodes with the columns of Sigma that are not all zero."""
    sigma = coefficients.sigma[:, list(layout.sigma_columns)]
    return MarketTastes(sigma, coefficients.pi, coefficients.rho, coefficients.tau, layout.node_columns, layout.form)


def demand_point(
    parameters: MarketTastes,
    market: Bucket,
    delta: Float[AnyArray, "*T J"],
    X2: Float[AnyArray, "*T J K2"],
    delta_slope: Float[AnyArray, "*T J"],
    X2_slope: Float[AnyArray, "*T J K2"],
) -> DemandPoint:
    """Demand of one market at given tastes, mean utilities and X2, with the slopes of both in some variable."""
    scale, C = parameters.scale, parameters.of_agents(market)
    if market.offsets is not None:
        X2, C, X2_slope = with_offsets(market.offsets, X2, C, X2_slope)
    return DemandPoint(
        delta / scale,
        X2 / scale,
        C,
        market.weights,
        market.availability,
        delta_slope / scale,
        X2_slope / scale,
        market.present,
        parameters.of_groups(market),
    )


def with_offsets(
    offsets: Float[AnyArray, "*T J I"],
    X2: Float[AnyArray, "*T J K2"],
    C: Tastes,
    X2_slope: Float[AnyArray, "*T J K2"],
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """X2, tastes and the slopes of X2 with one more characteristic, of ones, for which offsets are agents' tastes.

    Tastes are then specific to products, which all kernels know.
    """
    xp = namespace(X2)
    common = C[..., None, :, :] if C.ndim == X2.ndim else C
    C = xp.broadcast_to(common, (*X2.shape[:-1], *common.shape[-2:]))
    one = xp.ones((*X2.shape[:-1], 1))
    return (
        xp.concatenate([X2, one], axis=-1),
        xp.concatenate([C, offsets[..., :, None, :]], axis=-2),
        xp.concatenate([X2_slope, 0.0 * one], axis=-1),
    )
