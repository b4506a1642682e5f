"""JAX-accelerated differentiable estimation of BLP demand models.

Importing this package turns on 64-bit numbers in JAX, because 32-bit ones give wrong estimates, sets up JAX's
persistent compilation cache, unless one is configured already or the environment variable
``BLPJAX_COMPILATION_CACHE`` is ``0``, and has SciPy's LAPACK, which JAX calls on CPUs, use one thread, unless
``BLPJAX_LAPACK_THREADS`` is ``0``. Everything else is imported when it is used first.
"""

import importlib as _importlib
import importlib.util as _importlib_util
from typing import TYPE_CHECKING as _TYPE_CHECKING

from blpjax.machine.garbage import uncollected as _uncollected

with _uncollected(lasting=True):
    import jax as _jax

    _jax.config.update("jax_enable_x64", True)

    from blpjax import exceptions, options
    from blpjax.machine import caches as _caches
    from blpjax.machine import lapack as _lapack

_caches.configure_cache()
_lapack.limit_lapack_threads()

if _TYPE_CHECKING:  # what `__getattr__` imports, for checkers and editors
    from blpjax import data
    from blpjax import plots as plots  # not in __all__: it needs matplotlib
    from blpjax.estimation.comparison import compare_estimates
    from blpjax.estimation.progress import OptimizationProgress
    from blpjax.estimation.start_frac import FracStarts
    from blpjax.estimation.starts import Starts
    from blpjax.inference.bootstrap import BootstrappedResults
    from blpjax.inference.delta_method import DeltaMethodResults
    from blpjax.inference.fixed_effects import FixedEffectProjection
    from blpjax.inference.importance_sampling import ImportanceSamplingResults
    from blpjax.inference.optimal_instruments import OptimalInstrumentResults
    from blpjax.inference.reestimation_results import ReestimationResults
    from blpjax.inputs.agent_products import build_agent_product_data
    from blpjax.inputs.construction import build_id_data, build_integration, build_ownership, data_to_dict
    from blpjax.inputs.formulation import Formulation
    from blpjax.inputs.instruments import build_blp_instruments, build_differentiation_instruments
    from blpjax.inputs.integration import Integration
    from blpjax.inputs.likelihood import MicroLikelihood
    from blpjax.inputs.matrices import build_matrix
    from blpjax.inputs.micro import MicroDataset, MicroMoment, MicroPart
    from blpjax.inputs.taxes import Taxes
    from blpjax.iteration import Iteration
    from blpjax.kernels.conduct import (
        Bargaining,
        Bertrand,
        Conduct,
        ConstantMarkup,
        Cournot,
        Mixed,
        Monopoly,
        PerfectCompetition,
        ResalePriceMaintenance,
        RuleOfThumb,
        Stackelberg,
        TwoTier,
    )
    from blpjax.kernels.conduct_parameters import Parameter
    from blpjax.kernels.own_conduct import conditions, conduct
    from blpjax.kernels.priced_market import PricedMarket
    from blpjax.machine.parallel import parallel
    from blpjax.machine.pickling import read_pickle, save_pickle
    from blpjax.model.parameters import Transformation
    from blpjax.objective.blocks import MomentBlock, Point, SampleMoments
    from blpjax.objective.functions import ModelFunctions
    from blpjax.objective.structured import Agents, Products
    from blpjax.objective.survey_moments import SurveyMoments, micro_moments
    from blpjax.optimize.optimize import Optimization
    from blpjax.outputs.comparison import compare
    from blpjax.outputs.outcome import Counterfactual
    from blpjax.problem.likelihood import LikelihoodResults
    from blpjax.problem.load import load
    from blpjax.problem.problem import ImportanceSamplingProblem, OptimalInstrumentProblem, Problem
    from blpjax.problem.results import ProblemResults
    from blpjax.r_style import estimation_summary, problem_from_formula
    from blpjax.reporting.estimates_table import EstimatesTable
    from blpjax.simulation.results import SimulationResults
    from blpjax.simulation.simulation import Simulation
    from blpjax.studies.lane_instruments import OptimalInstruments
    from blpjax.studies.monte_carlo import MonteCarlo
    from blpjax.studies.results import MonteCarloResults

__version__ = "0.1.0"

__all__ = [
    "Agents",
    "Bargaining",
    "Bertrand",
    "BootstrappedResults",
    "Conduct",
    "ConstantMarkup",
    "Counterfactual",
    "Cournot",
    "DeltaMethodResults",
    "EstimatesTable",
    "FixedEffectProjection",
    "Formulation",
    "FracStarts",
    "ImportanceSamplingProblem",
    "ImportanceSamplingResults",
    "Integration",
    "Iteration",
    "LikelihoodResults",
    "MicroDataset",
    "MicroLikelihood",
    "MicroMoment",
    "MicroPart",
    "Mixed",
    "ModelFunctions",
    "MomentBlock",
    "Monopoly",
    "MonteCarlo",
    "MonteCarloResults",
    "OptimalInstrumentProblem",
    "OptimalInstrumentResults",
    "OptimalInstruments",
    "Optimization",
    "OptimizationProgress",
    "Parameter",
    "PerfectCompetition",
    "Point",
    "PricedMarket",
    "Problem",
    "ProblemResults",
    "Products",
    "ReestimationResults",
    "ResalePriceMaintenance",
    "RuleOfThumb",
    "SampleMoments",
    "Simulation",
    "SimulationResults",
    "Stackelberg",
    "Starts",
    "SurveyMoments",
    "Taxes",
    "Transformation",
    "TwoTier",
    "__version__",
    "build_agent_product_data",
    "build_blp_instruments",
    "build_differentiation_instruments",
    "build_id_data",
    "build_integration",
    "build_matrix",
    "build_ownership",
    "compare",
    "compare_estimates",
    "conditions",
    "conduct",
    "data",
    "data_to_dict",
    "estimation_summary",
    "exceptions",
    "load",
    "micro_moments",
    "options",
    "parallel",
    "problem_from_formula",
    "read_pickle",
    "save_pickle",
]

#: Modules, and the names that they give to this one.
_HOMES = {
    "blpjax.estimation.comparison": ("compare_estimates",),
    "blpjax.estimation.progress": ("OptimizationProgress",),
    "blpjax.estimation.start_frac": ("FracStarts",),
    "blpjax.estimation.starts": ("Starts",),
    "blpjax.inference.bootstrap": ("BootstrappedResults",),
    "blpjax.inference.delta_method": ("DeltaMethodResults",),
    "blpjax.inference.fixed_effects": ("FixedEffectProjection",),
    "blpjax.inference.importance_sampling": ("ImportanceSamplingResults",),
    "blpjax.inference.optimal_instruments": ("OptimalInstrumentResults",),
    "blpjax.inference.reestimation_results": ("ReestimationResults",),
    "blpjax.inputs.agent_products": ("build_agent_product_data",),
    "blpjax.inputs.construction": ("build_id_data", "build_integration", "build_ownership", "data_to_dict"),
    "blpjax.inputs.formulation": ("Formulation",),
    "blpjax.inputs.instruments": ("build_blp_instruments", "build_differentiation_instruments"),
    "blpjax.inputs.integration": ("Integration",),
    "blpjax.inputs.likelihood": ("MicroLikelihood",),
    "blpjax.inputs.matrices": ("build_matrix",),
    "blpjax.inputs.micro": ("MicroDataset", "MicroMoment", "MicroPart"),
    "blpjax.inputs.taxes": ("Taxes",),
    "blpjax.iteration": ("Iteration",),
    "blpjax.kernels.conduct": (
        "Bargaining",
        "Bertrand",
        "Conduct",
        "ConstantMarkup",
        "Cournot",
        "Mixed",
        "Monopoly",
        "PerfectCompetition",
        "ResalePriceMaintenance",
        "RuleOfThumb",
        "Stackelberg",
        "TwoTier",
    ),
    "blpjax.kernels.conduct_parameters": ("Parameter",),
    "blpjax.kernels.own_conduct": ("conditions", "conduct"),
    "blpjax.kernels.priced_market": ("PricedMarket",),
    "blpjax.machine.parallel": ("parallel",),
    "blpjax.machine.pickling": ("read_pickle", "save_pickle"),
    "blpjax.model.parameters": ("Transformation",),
    "blpjax.objective.blocks": ("MomentBlock", "Point", "SampleMoments"),
    "blpjax.objective.functions": ("ModelFunctions",),
    "blpjax.objective.structured": ("Agents", "Products"),
    "blpjax.objective.survey_moments": ("SurveyMoments", "micro_moments"),
    "blpjax.optimize.optimize": ("Optimization",),
    "blpjax.outputs.comparison": ("compare",),
    "blpjax.outputs.outcome": ("Counterfactual",),
    "blpjax.problem.likelihood": ("LikelihoodResults",),
    "blpjax.problem.load": ("load",),
    "blpjax.problem.problem": ("ImportanceSamplingProblem", "OptimalInstrumentProblem", "Problem"),
    "blpjax.problem.results": ("ProblemResults",),
    "blpjax.r_style": ("estimation_summary", "problem_from_formula"),
    "blpjax.reporting.estimates_table": ("EstimatesTable",),
    "blpjax.simulation.results": ("SimulationResults",),
    "blpjax.simulation.simulation": ("Simulation",),
    "blpjax.studies.lane_instruments": ("OptimalInstruments",),
    "blpjax.studies.monte_carlo": ("MonteCarlo",),
    "blpjax.studies.results": ("MonteCarloResults",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


if not _TYPE_CHECKING:  # where checkers would take it for a promise of any attribute

    def __getattr__(name: str) -> object:
        if name in ("data", "plots"):
            return _importlib.import_module(f"blpjax.{name}")
        if name in _MODULES:
            with _uncollected(lasting=True):
                value = getattr(_importlib.import_module(_MODULES[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'blpjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is for users: not the modules that the names come from."""
    drawn = {"plots"} if _importlib_util.find_spec("matplotlib") else set()
    return sorted({*__all__, *drawn, *(name for name in globals() if name[:2] == "__")})
