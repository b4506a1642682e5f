"""Optimisers of lanes: which of those of `Optimization` can run inside compiled programs, and their steps there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.objective.moments import Evaluation
from blpjax.optimize import quasi_newton, trust_region
from blpjax.optimize.optimize import Optimization
from blpjax.optimize.quasi_newton import QuasiNewtonAdvance, QuasiNewtonOptions
from blpjax.optimize.trust_region import Advance, Residuals, TrustRegionOptions

#: Trust regions of lanes end where a full step promises a relative decrease of the objective below this. Rounding
#: differs between batches and devices: less accurate lanes would carry it into their estimates.
DECREASE = 1e-21

#: L-BFGS of lanes ends at a gradient of the objective, without its factor N, below this.
GRADIENT = 1e-9


class LaneOptimizer(NamedTuple):
    """An optimiser and its options by name. Its values decide which programs are compiled."""

    method: str = "trust-region"
    options: tuple[tuple[str, float], ...] = (("decrease_tol", DECREASE),)

    def begin(
        self, start: Float[Array, " P"], lower: Float[Array, " P"], upper: Float[Array, " P"], residual_count: int
    ) -> Any:
        """What to evaluate first, as `Advance` or `QuasiNewtonAdvance`.

        Parameters
        ----------
        start, lower, upper : (P,) starting values and bounds, which L-BFGS ignores.
        residual_count : number of residuals.
        """
        options: dict[str, Any] = dict(self.options)
        stuck = jnp.asarray(False)
        if self.method == "trust-region":
            state = trust_region.initialise(start, lower, upper, residual_count, TrustRegionOptions(**options))
            return Advance(state, state.theta, stuck)
        memory_size = int(options.pop("memory_size", 10))
        known: Any = quasi_newton.initialise(start, memory_size, QuasiNewtonOptions(**options))
        return QuasiNewtonAdvance(known, known.theta, stuck)

    def advance(self, now: Any, found: Evaluation) -> Any:
        """What to do after the candidate's evaluation."""
        state, candidate, _ = now
        if self.method == "trust-region":
            evaluation = Residuals(found.residuals, found.residual_jacobian, found.ok)
            return trust_region.proceed(trust_region.update(state, candidate, evaluation))
        derivatives = (found.gradient, found.residual_jacobian)
        return quasi_newton.proceed(quasi_newton.update(state, candidate, found.objective, *derivatives, found.ok))

    def inform(self, now: Any, hessian: Callable[[Any], Array]) -> Any:
        """Continue with the exact Hessian, a function of the optimiser's state, where the optimiser asks for it."""
        return trust_region.inform(now.state, hessian(now.state))


def read_optimizer(optimization: Optimization | None, factor: float = 1.0) -> LaneOptimizer | None:
    """The optimiser of lanes that an `Optimization` stands for, None where only a host loop can do it.

    Parameters
    ----------
    optimization : by default the trust region.
    factor : what multiplies the objective that the gradient's tolerance ``gtol`` refers to; lanes leave it out.
    """
    if optimization is None:
        return LaneOptimizer()
    options = {name: float(value) for name, value in (optimization.method_options or {}).items()}
    if "gtol" in options:
        options["gtol"] /= factor
    match optimization.method:
        case "trust-region":
            return LaneOptimizer("trust-region", tuple(sorted({"decrease_tol": DECREASE, **options}.items())))
        case "optax-l-bfgs":
            return LaneOptimizer("optax-l-bfgs", tuple(sorted({"gtol": GRADIENT, **options}.items())))
    return None
