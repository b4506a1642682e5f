"""JAX-accelerated differentiable estimation of BLP demand models.

Importing this package turns on 64-bit numbers in JAX, because 32-bit ones give wrong estimates, sets up JAX's
persistent compilation cache, unless one is configured already or the environment variable
``BLPJAX_COMPILATION_CACHE`` is ``0``, and has SciPy's LAPACK, which JAX calls on CPUs, use one thread, unless
``BLPJAX_LAPACK_THREADS`` is ``0``.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

import jax as _jax

_jax.config.update("jax_enable_x64", True)

from blpjax.machine import caches as _caches  # noqa: E402
from blpjax.machine import lapack as _lapack  # noqa: E402
from blpjax.outputs import micro as _micro  # noqa: E402

_caches.configure_cache()
_lapack.limit_lapack_threads()

from blpjax import data, exceptions, options  # noqa: E402
from blpjax.estimation.progress import OptimizationProgress  # noqa: E402
from blpjax.estimation.start_frac import FracStarts  # noqa: E402
from blpjax.estimation.starts import Starts  # noqa: E402
from blpjax.inference.bootstrap import BootstrappedResults  # noqa: E402
from blpjax.inference.delta_method import DeltaMethodResults  # noqa: E402
from blpjax.inference.fixed_effects import FixedEffectProjection  # noqa: E402
from blpjax.inference.importance_sampling import ImportanceSamplingResults  # noqa: E402
from blpjax.inference.optimal_instruments import OptimalInstrumentResults  # noqa: E402
from blpjax.inference.reestimation_results import ReestimationResults  # noqa: E402
from blpjax.inputs.agent_products import build_agent_product_data  # noqa: E402
from blpjax.inputs.construction import build_id_data, build_integration, build_ownership, data_to_dict  # noqa: E402
from blpjax.inputs.formulation import Formulation  # noqa: E402
from blpjax.inputs.instruments import build_blp_instruments, build_differentiation_instruments  # noqa: E402
from blpjax.inputs.integration import Integration  # noqa: E402
from blpjax.inputs.matrices import build_matrix  # noqa: E402
from blpjax.iteration import Iteration  # noqa: E402
from blpjax.machine.parallel import parallel  # noqa: E402
from blpjax.machine.pickling import read_pickle, save_pickle  # noqa: E402
from blpjax.model.parameters import Transformation  # noqa: E402
from blpjax.objective.blocks import MomentBlock, Point, SampleMoments  # noqa: E402
from blpjax.objective.functions import ModelFunctions  # noqa: E402
from blpjax.optimize.optimize import Optimization  # noqa: E402
from blpjax.problem.load import load  # noqa: E402
from blpjax.problem.problem import ImportanceSamplingProblem, OptimalInstrumentProblem, Problem  # noqa: E402
from blpjax.problem.results import ProblemResults  # noqa: E402
from blpjax.r_style import estimation_summary, problem_from_formula  # noqa: E402
from blpjax.simulation.results import SimulationResults  # noqa: E402
from blpjax.simulation.simulation import Simulation  # noqa: E402
from blpjax.studies.lane_instruments import OptimalInstruments  # noqa: E402
from blpjax.studies.monte_carlo import MonteCarlo  # noqa: E402
from blpjax.studies.results import MonteCarloResults  # noqa: E402

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
    "MomentBlock",
    "MonteCarlo",
    "MonteCarloResults",
    "OptimalInstrumentProblem",
    "OptimalInstrumentResults",
    "OptimalInstruments",
    "Optimization",
    "OptimizationProgress",
    "Point",
    "Problem",
    "ProblemResults",
    "ReestimationResults",
    "SampleMoments",
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
