"""Optimisers of lanes: those of `Optimization` that can run inside of compiled programs, and their steps there."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from blpjax.objective.moments import Evaluation
from blpjax.optimize.optimize import Optimization
from blpjax.optimize.stepwise import Advance, SearchState, Stepwise, Trial
from blpjax.optimize.table import ROUTINES

_DEFAULT = "trust-region"


class LaneOptimizer(NamedTuple):
    """An optimiser and its options by name. Its values decide which programs are compiled."""

    method: str = _DEFAULT
    options: tuple[tuple[str, float], ...] = tuple(sorted(ROUTINES[_DEFAULT].lane_options.items()))

    def begin(
        self, start: Float[Array, " P"], lower: Float[Array, " P"], upper: Float[Array, " P"], residual_count: int
    ) -> Advance:
        """What to evaluate first.

        Parameters
        ----------
        start, lower, upper : (P,) starting values and bounds, which L-BFGS ignores.
        residual_count : number of residuals.
        """
        return self._stepwise.begin(start, lower, upper, residual_count, dict(self.options))

    def advance(self, now: Advance, found: Evaluation) -> Advance:
        """What to do after the candidate's evaluation."""
        values = found.objective, found.gradient, found.residuals, found.residual_jacobian, found.ok
        return self._stepwise.advance(now.state, Trial(now.candidate, *values))

    def inform(self, now: Advance, hessian: Callable[[SearchState], Array]) -> Advance:
        """Continue with the exact Hessian, a function of the optimiser's state, where the optimiser asks for it."""
        return self._stepwise.inform(now.state, hessian(now.state))

    @property
    def _stepwise(self) -> Stepwise:
        method = ROUTINES[self.method].stepwise
        assert method is not None, self.method
        return method


def read_optimizer(optimization: Optimization | None, factor: float | None = None) -> LaneOptimizer | None:
    """The optimiser of lanes that an `Optimization` stands for, None where only a host loop can do it.

    Parameters
    ----------
    optimization : by default the trust region.
    factor : what multiplies the objective that tolerances refer to and lanes leave out, None if nothing does.
    """
    if optimization is None:
        return LaneOptimizer()
    routine, given = optimization.routine, optimization.method_options or {}
    if routine.stepwise is None or (factor is not None and routine.relative and given):
        return None
    options = {name: float(value) for name, value in given.items()}
    if factor is not None and "gtol" in options:
        options["gtol"] /= factor
    return LaneOptimizer(str(optimization.method), tuple(sorted({**routine.lane_options, **options}.items())))
