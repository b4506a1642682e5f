"""Replications of Monte Carlo studies: equilibria that are drawn, and how a lane's data follow from one."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.characteristics import Characteristics
from blpjax.estimation.lane import Lane, describe_layout, move_lane
from blpjax.machine.compilation import filtered_program
from blpjax.machine.placement import Placement
from blpjax.machine.spread import each_lane
from blpjax.model.inversion import closed_form
from blpjax.model.model import Model
from blpjax.model.parameters import ParameterLayout
from blpjax.model.tastes import market_tastes
from blpjax.simulation.simulation import Simulation
from blpjax.studies.generator import NOTHING, ExogenousDraws
from blpjax.studies.surveys import SurveyDraws


class Truth(eqx.Module):
    """What replications are drawn from: the model at the simulation's variables, and its linear parts."""

    model: Model
    delta: Float[Array, " N"]
    tilde_costs: Float[Array, " N"]
    gamma: Float[Array, " K3"]
    root: Float[Array, "2 2"]
    logarithmic: bool = eqx.field(static=True)

    @property
    def description(self) -> tuple[Any, ...]:
        """All that is true but the arrays."""
        known = describe_layout(self.model.layout), self.logarithmic
        return known if self.model.conduct is None else (*known, self.model.conduct.conduct)


class Drawn(eqx.Module):
    """Prices, shares and mean utilities (N,) of a replication, and the status of its equilibrium.

    `exogenous` is what else was drawn, `survey` what respondents said, None without micro moments.
    """

    prices: Float[Array, "*B N"]
    shares: Float[Array, "*B N"]
    delta: Float[Array, "*B N"]
    status: Any
    exogenous: ExogenousDraws
    survey: SurveyDraws | None = None

    @property
    def solved(self) -> bool:
        """Whether one replication has prices and shares; only of host arrays."""
        return bool(np.isfinite(self.prices).all() and np.isfinite(self.shares).all())

    @property
    def changes(self) -> dict[str, Any]:
        """All variables of products that replications change."""
        return {"prices": self.prices, "shares": self.shares, **self.exogenous.variables}

    def of(self, characteristics: Characteristics) -> Characteristics:
        """Characteristics of one replication."""
        prices_and_shares = {"prices": self.prices, "shares": self.shares}
        return characteristics.replace(prices_and_shares | self.exogenous.of(characteristics))

    def model(self, truth: Model) -> Model:
        """The simulation's model in one replication."""
        known = self.of(truth.characteristics)
        return eqx.tree_at(lambda m: (m.delta, m.characteristics), truth, (self.delta, known))


def build_truth(simulation: Simulation, moments: tuple[float, float, float]) -> Truth:
    """The truth of a simulation, with variances of xi and omega and their correlation; `ValueError` for others."""
    xi_variance, omega_variance, correlation = map(float, moments)
    if xi_variance < 0 or omega_variance < 0 or not -1 <= correlation <= 1:
        raise ValueError(
            "Variances must be at least zero and correlation between -1 and 1, but they are "
            f"{xi_variance:g}, {omega_variance:g} and {correlation:g}."
        )
    known = simulation.primitives
    assert known.tilde_costs is not None and known.omega is not None
    scales = np.sqrt([xi_variance, omega_variance])
    rest = np.sqrt(1 - correlation**2)
    return Truth(
        model=known.model(known.delta - known.xi),
        delta=jnp.asarray(known.delta - known.xi),
        tilde_costs=jnp.asarray(known.tilde_costs - known.omega),
        gamma=jnp.asarray(known.coefficients.gamma),
        root=jnp.asarray(scales[:, None] * np.array([[1.0, 0.0], [correlation, rest]])),
        logarithmic=known.costs_type == "log",
    )


@filtered_program(effort=1, what="equilibria of replications")
def draw_replications(
    truth: Truth,
    key: Array,
    replications: Array,
    exogenous: ExogenousDraws = NOTHING,
    placement: Placement | None = None,
) -> Drawn:
    """Equilibria of replications, by their numbers and exogenous variables."""

    def one(replication: Array, exogenous: ExogenousDraws) -> Drawn:
        normal = jax.random.normal(jax.random.fold_in(key, replication), (2, truth.delta.size))
        xi, omega = truth.root @ normal
        known, delta, tilde_costs = truth.model.characteristics, truth.delta, truth.tilde_costs
        if changes := exogenous.of(known):
            known = known.replace(changes)
            delta = known.evaluate({})[0] @ jnp.asarray(truth.model.coefficients.beta)
            tilde_costs = known.evaluate_X3({}) @ truth.gamma
        tilde_costs += omega
        costs = jnp.exp(tilde_costs) if truth.logarithmic else tilde_costs
        model = eqx.tree_at(lambda m: (m.delta, m.characteristics), truth.model, (delta + xi, known))
        found = model.solve_prices(costs=costs, prices=costs)
        solved = model.at({"prices": found.prices})
        return Drawn(found.prices, solved.shares, solved.delta, found.status, exogenous)

    return each_lane(one, replications, exogenous, placement=placement)


class Replication(eqx.Module):
    """How a lane's data follow from what a replication has drawn."""

    characteristics: Characteristics
    layout: ParameterLayout = eqx.field(static=True)
    add_exogenous: bool = eqx.field(static=True)

    def __call__(self, lane: Lane, drawn: Drawn) -> Lane:
        """The lane with what was drawn in all data."""
        known = drawn.of(self.characteristics)
        economy = lane.economy.with_products(drawn.shares, known.evaluate({})[1])
        more = lane.data.more if drawn.survey is None else [drawn.survey.move(block) for block in lane.data.more]
        instruments = drawn.exogenous.instruments(known, self.add_exogenous)
        data = lane.data.at(known, instruments=instruments, more=more)
        delta = closed_form(economy, market_tastes(lane.fixed, self.layout))
        return dataclasses.replace(lane, economy=economy, data=data, delta=delta)


@filtered_program(effort=1)
def build_lanes(replication: Replication, shared: Lane, drawn: Drawn) -> Lane:
    """What differs between lanes with what replications have drawn in all data."""
    nothing = eqx.filter(shared, False)
    return each_lane(lambda drawn: move_lane(replication, nothing, shared, drawn), drawn, placement=shared.placement)
