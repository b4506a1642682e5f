"""JAX-accelerated differentiable estimation of BLP demand models.

Importing this package turns on 64-bit numbers in JAX, because 32-bit ones give wrong estimates, sets up JAX's
persistent compilation cache, unless one is configured already or the environment variable
``BLPJAX_COMPILATION_CACHE`` is ``0``, and has SciPy's LAPACK, which JAX calls on CPUs, use one thread, unless
``BLPJAX_LAPACK_THREADS`` is ``0``.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

import jax as _jax

_jax.config.update("jax_enable_x64", True)

from blpjax import compilation as _compilation  # noqa: E402
from blpjax import lapack as _lapack  # noqa: E402
from blpjax import micro as _micro  # noqa: E402

_compilation.configure_cache()
_lapack.limit_lapack_threads()

from blpjax import data, exceptions, options  # noqa: E402
from blpjax.batch_instruments import OptimalInstruments  # noqa: E402
from blpjax.bootstrap import BootstrappedResults  # noqa: E402
from blpjax.delta_method import DeltaMethodResults  # noqa: E402
from blpjax.formulas import estimation_summary, problem_from_formula  # noqa: E402
from blpjax.frac import FracStarts  # noqa: E402
from blpjax.functions import ModelFunctions  # noqa: E402
from blpjax.importance_sampling import ImportanceSamplingResults  # noqa: E402
from blpjax.inputs.agent_products import build_agent_product_data  # noqa: E402
from blpjax.inputs.construction import (  # noqa: E402
    build_id_data,
    build_integration,
    build_ownership,
    data_to_dict,
)
from blpjax.inputs.formulation import Formulation  # noqa: E402
from blpjax.inputs.instruments import build_blp_instruments, build_differentiation_instruments  # noqa: E402
from blpjax.inputs.integration import Integration  # noqa: E402
from blpjax.inputs.matrices import build_matrix  # noqa: E402
from blpjax.iteration import Iteration  # noqa: E402
from blpjax.loading import load  # noqa: E402
from blpjax.minimum_distance import FixedEffectProjection  # noqa: E402
from blpjax.montecarlo import MonteCarlo  # noqa: E402
from blpjax.montecarlo_results import MonteCarloResults  # noqa: E402
from blpjax.multistart import Starts  # noqa: E402
from blpjax.optimal_instruments import OptimalInstrumentResults  # noqa: E402
from blpjax.optimize import Optimization  # noqa: E402
from blpjax.parameters import Transformation  # noqa: E402
from blpjax.pickling import read_pickle, save_pickle  # noqa: E402
from blpjax.problem import ImportanceSamplingProblem, OptimalInstrumentProblem, Problem  # noqa: E402
from blpjax.processes import parallel  # noqa: E402
from blpjax.progress import OptimizationProgress  # noqa: E402
from blpjax.reestimation_results import ReestimationResults  # noqa: E402
from blpjax.results import ProblemResults  # noqa: E402
from blpjax.simulation import Simulation  # noqa: E402
from blpjax.simulation_results import SimulationResults  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "BootstrappedResults",
    "DeltaMethodResults",
    "FixedEffectProjection",
    "Formulation",
    "FracStarts",
    "ImportanceSamplingProblem",
    "ImportanceSamplingResults",
    "Integration",
    "Iteration",
    "ModelFunctions",
    "MonteCarlo",
    "MonteCarloResults",
    "OptimalInstrumentProblem",
    "OptimalInstrumentResults",
    "OptimalInstruments",
    "Optimization",
    "OptimizationProgress",
    "Problem",
    "ProblemResults",
    "ReestimationResults",
    "Simulation",
    "SimulationResults",
    "Starts",
    "Transformation",
    "__version__",
    "build_agent_product_data",
    "build_blp_instruments",
    "build_differentiation_instruments",
    "build_id_data",
    "build_integration",
    "build_matrix",
    "build_ownership",
    "data",
    "data_to_dict",
    "estimation_summary",
    "exceptions",
    "load",
    "options",
    "parallel",
    "problem_from_formula",
    "read_pickle",
    "save_pickle",
]


if not _TYPE_CHECKING:  # where checkers would take it for a promise of any attribute

    def __getattr__(name: str) -> object:
        if name in _micro.ABSENT_CLASSES:
            raise AttributeError(_micro.explain_absence(f"blpjax.{name}"))
        raise AttributeError(f"module 'blpjax' has no attribute {name!r}")
