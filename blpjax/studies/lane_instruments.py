"""Optimal instruments for many estimations at once: lanes are estimated, get instruments of their own, and again.

What is done for a lane is what `ProblemResults.compute_optimal_instruments`, `OptimalInstrumentResults.to_problem` and
`Problem.solve` do for one problem, with the same functions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from blpjax.economy.characteristics import Characteristics, build_characteristics
from blpjax.economy.conduct import ConductData
from blpjax.economy.ownership import Ownership
from blpjax.estimation.lane import BatchOptions, Lane, describe_method, split_lanes
from blpjax.estimation.lanes import BatchOutcome, estimate_lanes
from blpjax.exceptions import Status, succeeded
from blpjax.inference import optimal_instruments
from blpjax.inputs.arguments import check_choice
from blpjax.inputs.formulation import Formulation
from blpjax.iteration import Iteration
from blpjax.machine.compilation import filtered_program
from blpjax.machine.spread import each_lane
from blpjax.model.expectations import Setting, realize
from blpjax.model.model import Model
from blpjax.model.parameters import ParameterLayout, all_coefficients
from blpjax.objective.build import exogenous_columns
from blpjax.objective.structure import Specification
from blpjax.problem.problem import Problem
from blpjax.values import read_flag


@dataclasses.dataclass(frozen=True)
class OptimalInstruments:
    """Estimate each replication of a `MonteCarlo` study again, with feasible optimal instruments.

    Each replication is estimated with the problem's instruments, which are then replaced by optimal ones at these
    estimates, as by `ProblemResults.compute_optimal_instruments` and `OptimalInstrumentResults.to_problem`.

    Parameters
    ----------
    method : ``'approximate'``: Jacobians are evaluated at structural errors of zero. Others are not supported yet.
    first_method : number of steps, ``'1s'`` or ``'2s'``, of the first estimation, by default as of the second.
    iteration, constant_costs : how to solve for expected prices, as in `ProblemResults.compute_optimal_instruments`.
    supply_shifter_formulation, demand_shifter_formulation, drop_indices : those of
        `OptimalInstrumentResults.to_problem`. Shifters are read from the problem's product data.

    Raises
    ------
    ValueError
        For methods that there are not.
    NotImplementedError
        For other methods than ``'approximate'``.
    """

    method: str = "approximate"
    first_method: str | None = None
    iteration: Iteration | None = None
    constant_costs: bool = True
    supply_shifter_formulation: Formulation | None = None
    demand_shifter_formulation: Formulation | None = None
    drop_indices: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("approximate", "normal", "empirical"))
        read_flag("constant_costs", self.constant_costs)
        if self.method != "approximate":
            raise NotImplementedError(
                f"Optimal instruments with method={self.method!r} are not supported in Monte Carlo studies. Use "
                "'approximate'."
            )
        if self.first_method is not None:
            check_choice("first_method", self.first_method, ("1s", "2s"))


class InstrumentPlan(eqx.Module):
    """What instruments of all lanes have in common, from `plan_instruments`.

    Attributes
    ----------
    characteristics, ownership, conduct, costs_type : those of the problem. Prices and shares are replaced by those of
        lanes.
    shifters : formulas of supply shifters and of demand shifters in place of X1, None for none.
    kept : which of the P columns of optimal instruments are kept.
    equilibria : whether expected prices are those of equilibria, and not fitted values.
    iteration, constant_costs : how to solve for them.
    first_steps : GMM steps of the first estimation.
    """

    characteristics: Characteristics
    ownership: Ownership | None
    conduct: ConductData | None
    shifters: tuple[Characteristics | None, Characteristics | None]
    kept: tuple[bool, ...] = eqx.field(static=True)
    equilibria: bool = eqx.field(static=True)
    iteration: Iteration | None = eqx.field(static=True)
    constant_costs: bool = eqx.field(static=True)
    costs_type: str = eqx.field(static=True)
    first_steps: int = eqx.field(static=True)

    @property
    def description(self) -> str:
        """All of the plan but its arrays and what it takes from the problem."""
        loop = None
        if self.iteration is not None:
            loop = describe_method(self.iteration.fixed_point), self.iteration.limits
        shifters = [one and [column.label for column in one.X1_columns] for one in self.shifters]
        return repr((self.kept, self.equilibria, loop, self.constant_costs, self.first_steps, shifters))

    def instruments(
        self,
        layout: ParameterLayout,
        optimal: tuple[Any, Any],
        prices: Float[Array, " N"],
        shares: Float[Array, " N"],
        changes: Mapping[str, Float[Array, " N"]] | None = None,
    ) -> tuple[Float[Array, "N MD"], Float[Array, "N MS"] | None]:
        """All instruments of demand and supply, given optimal ones (N, P) and expected prices and shares.

        `changes` replace exogenous variables.
        """
        changed = changes or {}
        known = _replace_variables(self.characteristics, changed)
        shifters = tuple(
            None if one is None else _replace_variables(one, changed).evaluate({})[0] for one in self.shifters
        )
        excluded = optimal_instruments.excluded_instruments(
            (layout, known), optimal, np.array(self.kept, bool), prices, shares, (shifters[0], shifters[1])
        )
        X1, X3 = known.evaluate({})[0], known.evaluate_X3({})
        demand = jnp.hstack([excluded[0], X1[:, np.array(exogenous_columns(known.X1_columns, "prices"), int)]])
        if excluded[1] is None:
            return demand, None
        return demand, jnp.hstack([excluded[1], X3[:, np.array(exogenous_columns(known.X3_columns, "shares"), int)]])

    def count_moments(self, layout: ParameterLayout, supply: bool) -> int:
        """Number of instruments of demand and supply."""
        N = self.characteristics.variables["prices"].size
        none, errors = jnp.zeros(N), jnp.zeros((N, layout.P))
        optimal = (errors, errors if supply else None)
        return sum(
            Z.shape[1] for Z in jax.tree.leaves(jax.eval_shape(lambda: self.instruments(layout, optimal, none, none)))
        )


def plan_instruments(problem: Problem, layout: ParameterLayout, given: Any, steps: int) -> InstrumentPlan:
    """Check options, `OptimalInstruments` or its `method`, against a problem whose estimation takes `steps`.

    Raises
    ------
    TypeError, ValueError, DataError
        For other options, and as the methods that they belong to.
    """
    chosen = OptimalInstruments(given) if isinstance(given, str) else given
    if not isinstance(chosen, OptimalInstruments):
        raise TypeError(
            f"optimal_instruments must be OptimalInstruments, 'approximate' or None, not {type(given).__name__}."
        )
    supply = problem.model_data.supply is not None
    X1, _, X3 = problem.product_formulations
    shifters = optimal_instruments.read_shifters(
        (chosen.supply_shifter_formulation, chosen.demand_shifter_formulation),
        (optimal_instruments.find_shifters(X3, X1), optimal_instruments.find_shifters(X1, X3)),
        supply,
    )
    iteration = optimal_instruments.read_price_iteration(chosen.iteration, supply)
    dropped = optimal_instruments.read_dropped(chosen.drop_indices, layout, problem.characteristics)
    table = problem.product_table
    supply_shifters, demand_shifters = (
        None
        if formulation is None
        else build_characteristics([formulation.build(table.data), None, None], table.prices, table.shares)
        for formulation in shifters
    )
    return InstrumentPlan(
        characteristics=problem.characteristics,
        ownership=problem.ownership,
        conduct=problem.data.conduct_data,
        shifters=(supply_shifters, demand_shifters),
        kept=tuple((~dropped).tolist()),
        equilibria=optimal_instruments.expects_equilibrium_prices(problem.characteristics, supply, iteration),
        iteration=iteration,
        constant_costs=chosen.constant_costs,
        costs_type=problem.costs_type,
        first_steps=steps if chosen.first_method is None else int(chosen.first_method[0]),
    )


class Observed(eqx.Module):
    """Prices and shares (B, N) of all lanes, and the exogenous variables that they do not share."""

    prices: Float[Array, "*B N"]
    shares: Float[Array, "*B N"]
    exogenous: dict[str, Any]


def estimate_optimally(
    options: BatchOptions, plan: InstrumentPlan, varying: Lane, shared: Lane, observed: Observed
) -> BatchOutcome:
    """`estimate_lanes` with optimal instruments at the estimates of lanes with the instruments that they have.

    Second estimations start at the first ones' estimates, or where these started if structural errors do not depend on
    a parameter there. Lanes whose first estimation, expected prices or instruments failed have that status, and
    estimates of NaN. Evaluations are those of both estimations.

    Parameters
    ----------
    options, varying, shared : as in `estimate_lanes`.
    """
    size = observed.prices.shape[0]
    first = estimate_lanes(options._replace(steps=plan.first_steps), varying, shared, size)
    expected = None
    if not plan.equilibria:
        prices, Z = np.asarray(observed.prices), varying.data.demand.instruments
        if Z is None:
            fitted = optimal_instruments.fit_prices(np.asarray(shared.data.demand.instruments), prices.T).T
        else:
            fitted = np.stack([optimal_instruments.fit_prices(*one) for one in zip(np.asarray(Z), prices, strict=True)])
        expected = jnp.asarray(fitted)
    made = _make(options.specification, plan, varying, shared, jnp.asarray(first.parameters), observed, expected)
    status = np.where(first.ok, np.asarray(made.status), first.reasons)
    second = estimate_lanes(options, *_replace(varying, shared, made, first, succeeded(status)), size)
    return _combine(first, status, second)


class _Made(eqx.Module):
    """Instruments of demand and supply (B, N, M), delta at the estimates (B, N), and statuses (B,)."""

    demand: Float[Array, "*B N MD"]
    supply: Float[Array, "*B N MS"] | None
    delta: Float[Array, "*B N"]
    status: Int[Array, "*B"]


@filtered_program(effort=1)
def _make(
    specification: Specification,
    plan: InstrumentPlan,
    varying: Lane,
    shared: Lane,
    parameters: Array,
    observed: Observed,
    expected: Array | None,
) -> _Made:
    """Instruments of lanes at parameters (B, Q), and perhaps expected prices (B, N)."""

    def one(varying: Lane, parameters: Array, observed: Observed, expected: Array | None) -> _Made:
        found = _estimated(specification, plan, eqx.combine(varying, shared), parameters, observed)
        setting = Setting(found.model, parameters, expected, plan.iteration, plan.constant_costs)
        realized = realize(setting, found.explained)
        weighed = optimal_instruments.weigh_jacobians(found.errors, realized.xi_jacobian, realized.omega_jacobian, jnp)
        optimal = (weighed.demand, weighed.supply)
        demand, supply = plan.instruments(
            specification.layout, optimal, realized.prices, realized.shares, observed.exogenous
        )
        demand = _orthonormal(demand)
        supply = None if supply is None else _orthonormal(supply)
        finite = jnp.isfinite(demand).all() & (True if supply is None else jnp.isfinite(supply).all())
        status = jnp.maximum(found.status, realized.status.max())
        status = jnp.where(succeeded(status) & ~finite, int(Status.NOT_FINITE), status)
        return _Made(demand, supply, found.model.delta, status)

    return each_lane(one, varying, parameters, observed, expected, placement=shared.placement)


def _orthonormal(Z: Float[Array, "N M"]) -> Float[Array, "N M"]:
    """Other instruments that span the same space: orthogonal ones, and zeros for those that are collinear.

    Estimates, standard errors and the objective do not depend on which. But optimal instruments may be so close to
    collinear that rounding errors of their moments, ``Z'xi / N`` with large elements of xi and Z, become visible in the
    objective, and the optimiser would stall.
    """
    N, M = Z.shape
    lengths = jnp.linalg.norm(Z, axis=0)
    Q, R = jnp.linalg.qr(Z / jnp.where(lengths > 0, lengths, 1.0)[None, :])
    left, sizes, _ = jnp.linalg.svd(R)
    # where moments' weighting matrices see collinearity, in squares
    kept = sizes**2 > 10 * M * np.finfo(float).eps * sizes.max() ** 2
    basis = (Q @ left) * (jnp.sqrt(N) * jnp.where(kept, 1.0, 0.0))[None, :]
    return jnp.where(jnp.isfinite(Z).all(), basis, jnp.nan)


class _Estimated(eqx.Module):
    """A lane's model at its estimates, structural errors (N, 1 or 2), and delta and costs without them."""

    model: Model
    errors: Float[Array, "N sides"]
    explained: Float[Array, "N sides"]
    status: Int[Array, ""]


def _estimated(
    specification: Specification, plan: InstrumentPlan, lane: Lane, parameters: Array, observed: Observed
) -> _Estimated:
    layout, data = specification.layout, lane.data
    coefficients = all_coefficients(layout, lane.fixed, parameters)
    theta = parameters[: layout.P]
    found = lane.model(specification).at(theta, lane.delta)
    inversion = found.inversion
    values, explained = [inversion.delta], [data.demand.X @ jnp.asarray(coefficients.beta)]
    status = jnp.max(inversion.status)
    if data.supply is not None and found.costs is not None:
        values.append(found.costs.tilde_costs)
        explained.append(data.supply.equation.X @ jnp.asarray(coefficients.gamma))
        status = jnp.maximum(status, found.costs.status.max())
    model = Model(
        economy=lane.economy,
        characteristics=_replace_variables(
            plan.characteristics, {"prices": observed.prices, "shares": observed.shares, **observed.exogenous}
        ),
        coefficients=coefficients,
        delta=inversion.delta,
        layout=layout,
        ownership=plan.ownership,
        costs_type=plan.costs_type,
        conduct=plan.conduct,
    )
    bases = jnp.stack(explained, axis=1)
    return _Estimated(model, jnp.stack(values, axis=1) - bases, bases, status)


def _replace_variables(characteristics: Characteristics, changes: Mapping[str, Array]) -> Characteristics:
    """The same formulas with other values of those variables that they use."""
    return characteristics.replace({name: x for name, x in changes.items() if name in characteristics.variables})


def _replace(varying: Lane, shared: Lane, made: _Made, first: BatchOutcome, usable: np.ndarray) -> tuple[Lane, Lane]:
    """Lanes with their own instruments, NaN where these are not usable, and what lanes share without instruments."""
    lanes, P = usable.size, shared.lower.size
    start = jnp.broadcast_to(shared.theta, (lanes, P)) if varying.theta is None else varying.theta
    moved = jnp.asarray(usable[:, None] & first.identified[:, :P])
    theta = jnp.where(moved, jnp.asarray(first.parameters[:, :P]), start)
    delta = jnp.where(jnp.asarray(usable)[:, None], made.delta, varying.delta)
    known = jnp.asarray(usable)[:, None, None]
    demand = jnp.where(known, made.demand, jnp.nan)
    supply = None if made.supply is None else jnp.where(known, made.supply, jnp.nan)
    return split_lanes(_reinstrument, shared, _Again(theta, delta, demand, supply), varying)


class _Again(eqx.Module):
    """Where second estimations begin, theta (B, P) and delta (B, N), and their instruments (B, N, M)."""

    theta: Float[Array, "*B P"]
    delta: Float[Array, "*B N"]
    demand: Float[Array, "*B N MD"]
    supply: Float[Array, "*B N MS"] | None


def _reinstrument(lane: Lane, own: _Again) -> Lane:
    data = lane.data.at(instruments=[own.demand, own.supply])
    return dataclasses.replace(lane, theta=own.theta, delta=own.delta, data=data)


def _combine(first: BatchOutcome, status: np.ndarray, second: BatchOutcome) -> BatchOutcome:
    """Outcomes of second estimations, where instruments have a status (B,) of success."""
    made = succeeded(status)
    micro = [
        None if x is None else np.where(made[:, None], x, np.nan) for x in (second.micro_values, second.micro_errors)
    ]
    return BatchOutcome(
        parameters=np.where(made[:, None], second.parameters, np.nan),
        standard_errors=np.where(made[:, None], second.standard_errors, np.nan),
        identified=np.where(made[:, None], second.identified, first.identified),
        objectives=np.where(made, second.objectives, np.nan),
        gradient_norms=np.where(made, second.gradient_norms, np.nan),
        evaluations=first.evaluations + np.where(made, second.evaluations, 0),
        status=np.where(made, second.status, status),
        ok=second.ok & made,
        micro_values=micro[0],
        micro_errors=micro[1],
    )
