"""Problems and GMM steps as trees of plain values, which `blpjax.machine.storage` writes and reads, and back.

Functions of the user (custom optimisation routines and norms) are stored by name only: see `NotStored`.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from blpjax.economy.conduct import columns_read
from blpjax.economy.loops import Loops
from blpjax.estimation.options import StepOptions, usable_parameters
from blpjax.estimation.step import StepResult
from blpjax.exceptions import DataError, DataWarning, IdentificationWarning, warn_user
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import AgentNodes, Integration
from blpjax.inputs.table_format import describe_rows
from blpjax.iteration import Iteration
from blpjax.machine import storage
from blpjax.model.inversion import Inversion
from blpjax.model.parameters import BlockBounds, Bounds, Coefficients, Labels, ParameterLayout, Parameters, UtilityForm
from blpjax.objective import iv
from blpjax.objective.dynamics import MomentTypes
from blpjax.objective.inference import CovarianceTypes, StepSummary
from blpjax.objective.moments import Evaluation
from blpjax.objective.problem_data import ProblemData, Tolerances, build_problem_data
from blpjax.objective.structure import Costs
from blpjax.optimize.optimize import Optimization, OptimizationOutcome, OptimizationStatus
from blpjax.problem.conduct_state import conduct_state, stored_conduct
from blpjax.reporting.micro import MicroLine

State = dict[str, Any]
Module = TypeVar("Module", Coefficients, Costs, Evaluation, Inversion, StepSummary, iv.Inference)

# Columns that problems use by their names, perhaps numbered.
_PRODUCT_FIELDS = (
    "market_ids",
    "firm_ids",
    "nesting_ids",
    "subnesting_ids",
    "ownership",
    "product_ids",
    "clustering_ids",
    "lag_indices",
    "shares",
    "prices",
    "demand_instruments",
    "supply_instruments",
    "covariance_instruments",
)
_AGENT_FIELDS = ("market_ids", "agent_ids", "weights", "nodes", "availability")

_NORMS = {"numpy.linalg.norm": np.linalg.norm}


@dataclasses.dataclass(frozen=True)
class NotStored:
    """Stands in loaded results for a function, or another object, that files cannot hold. It cannot be called."""

    name: str

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Refuse."""
        raise NotImplementedError(
            f"{self.name} was not stored with the results, because files hold no code. Pass it again, for example in "
            "a new Optimization or Iteration."
        )

    def __repr__(self) -> str:
        return f"<{self.name}, not stored>"


@dataclasses.dataclass(frozen=True)
class Step:
    """What a results object is made of, besides its problem: see `ProblemResults`."""

    result: StepResult
    options: StepOptions
    estimated: bool


def problem_state(data: ProblemData, kind: str) -> State:
    """Return the tree of a problem, whose class is called `kind`.

    Raises
    ------
    DataError
        When a column that the problem uses holds objects that cannot be stored.
    NotImplementedError
        When a type of random coefficient, or a conduct, is a function.

    Warns
    -----
    DataWarning
        When such a column is left out, because the problem does not use it.
    """
    formulations, table = data.product_formulations, data.product_table
    integration, agents = data.integration, data.agent_table
    product_names = {name for f in formulations if f is not None for name in (*f.names, *f.absorb_names)}
    product_names |= set() if data.conduct is None else set(columns_read(data.conduct))
    agent_names = () if data.agent_formulation is None else data.agent_formulation.names
    built = {"market_ids": agents.market_ids, "nodes": agents.nodes, "weights": agents.weights}
    instruments = ("demand_instruments", "supply_instruments") if data.replaced_instruments else ()
    return {
        "product_formulations": [_formulation_state(formulation) for formulation in formulations],
        "product_data": table_state(table.data, "product_data", _PRODUCT_FIELDS, product_names),
        "agent_formulation": _formulation_state(data.agent_formulation),
        "agent_data": table_state(agents.data, "agent_data", _AGENT_FIELDS, agent_names) if agents.data else None,
        "integration": None if integration is None else integration_state(integration),
        "built_agents": None if integration is None else table_state(built, "agent_data", _AGENT_FIELDS, ()),
        "rc_types": [_stored_type(kind) for kind in data.rc_types],
        "epsilon_scale": data.epsilon_scale,
        "costs_type": data.costs_type,
        "add_exogenous": data.add_exogenous,
        "conduct": None if data.conduct is None else conduct_state(data.conduct),
        "tolerances": data.tolerances._asdict(),
        "kind": kind,
        "instruments": {name: getattr(table, name) for name in instruments},
    }


def read_problem(state: State) -> ProblemData:
    """The data of a problem, checked as they were before, without saying again what was said about them."""
    tolerances = Tolerances(*(float(state["tolerances"][name]) for name in Tolerances._fields))
    integration, built = state["integration"], None
    if integration is not None:
        integration, built = Integration(**integration), AgentNodes(**state["built_agents"])
    with warnings.catch_warnings():
        for category in (DataWarning, IdentificationWarning):
            warnings.simplefilter("ignore", category)
        data = build_problem_data(
            [_read_formulation(formulation) for formulation in state["product_formulations"]],
            state["product_data"],
            agent_formulation=_read_formulation(state["agent_formulation"]),
            agent_data=state["agent_data"],
            integration=integration,
            built=built,
            rc_types=state.get("rc_types") or None,
            epsilon_scale=state.get("epsilon_scale", 1.0),
            costs_type=state["costs_type"],
            add_exogenous=state["add_exogenous"],
            conduct=None if state.get("conduct") is None else stored_conduct(state["conduct"]),
            tolerances=tolerances,
        )
        if state.get("instruments"):
            data = data.replace_instruments(**state["instruments"], tolerances=tolerances)
    return data


def _stored_type(kind: Any) -> str:
    if not isinstance(kind, str):
        raise NotImplementedError(
            f"rc_types has the function {getattr(kind, '__name__', kind)!r}, and files hold no code. Save the "
            "estimates themselves, for example results.to_dict(), or pickle the results."
        )
    return kind


def step_state(step: Step) -> State:
    """Return the tree of a GMM step."""
    options = step.options
    special = {
        "optimization": _optimization_state(options.optimization),
        "iteration": _iteration_state(options.iteration),
    }
    names = [field.name for field in dataclasses.fields(options) if field.name not in special]
    return {
        "result": _tree(step.result),
        "estimated": step.estimated,
        "options": {**{name: _tree(getattr(options, name)) for name in names}, **special},
    }


def read_step(state: State, form: UtilityForm) -> Step:
    """Return the GMM step of a tree, for a problem with utilities of this form."""
    options = state["options"]
    optimization = _read_optimization(options["optimization"])
    return Step(
        result=_read_result(state["result"]),
        options=StepOptions(
            **{
                **options,
                "parameters": usable_parameters(_read_parameters(options["parameters"], form), optimization),
                "optimization": optimization,
                "iteration": _read_iteration(options["iteration"]),
                "types": _read_types(options["types"]),
                "moment_types": MomentTypes(**_tuple_fields(options.get("moment_types", {}))),
                "micro": tuple(MicroLine(**line) for line in options.get("micro", ())),
            }
        ),
        estimated=state["estimated"],
    )


def _tree(value: Any) -> Any:
    """Fields of (nested) dataclasses and named tuples by name; arrays of JAX become those of NumPy."""
    if isinstance(value, UtilityForm):
        return None  # problems have it
    if dataclasses.is_dataclass(value):
        return {field.name: _tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _tree(item) for name, item in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [_tree(item) for item in value]
    return np.asarray(value) if isinstance(value, jax.Array) else value


def _read_types(state: State) -> CovarianceTypes:
    types = CovarianceTypes(**state)
    return types._replace(n_clusters=tuple(types.n_clusters)) if isinstance(types.n_clusters, list) else types


def _evaluation_class(evaluation: State) -> type[Any]:
    if "hessian" not in evaluation:
        return Evaluation
    from blpjax.objective.likelihood import LikelihoodEvaluation  # imports much that only likelihoods need

    return LikelihoodEvaluation


def _read_result(state: State) -> StepResult:
    outcome, summary = state["outcome"], state["summary"]
    evaluation = outcome["evaluation"]
    return StepResult(
        **{
            **state,
            "summary": _read_module(StepSummary, summary, inference=_read_module(iv.Inference, summary["inference"])),
            "outcome": OptimizationOutcome(
                **{
                    **outcome,
                    "status": OptimizationStatus(outcome["status"]),
                    "evaluation": _read_module(
                        _evaluation_class(evaluation),
                        evaluation,
                        inversion=_read_module(Inversion, evaluation["inversion"]),
                        costs=None if evaluation["costs"] is None else _read_module(Costs, evaluation["costs"]),
                    ),
                }
            ),
            "inner": Loops(**state["inner"]),
        }
    )


def _read_parameters(state: State, form: UtilityForm) -> Parameters:
    if "phi" not in state["start"]:  # files from before there were lags
        none, labels = np.zeros((1 + bool(state["labels"]["X3"]), 0)), {"lagged": False, **state["labels"]}
        state = {**state, "labels": labels, "start": {**state["start"], "phi": none}}
        state["layout"], state["limits"] = (
            {**state["layout"], "phi": []},
            {**state["limits"], "phi": {"lower": none, "upper": none}},
        )
    if "kappa" not in state["start"]:  # files from before conduct had parameters
        nothing = np.zeros(0)
        state = {**state, "start": {**state["start"], "kappa": nothing}, "layout": {**state["layout"], "kappa": []}}
        state["limits"] = {**state["limits"], "kappa": {"lower": nothing, "upper": nothing}}
    coefficients = {name: jax.device_put(values) for name, values in state["start"].items()}
    return Parameters(
        **{
            **state,
            "labels": Labels(**_tuple_fields(state["labels"])),
            "layout": ParameterLayout(**{**_tuple_fields(state["layout"]), "form": form}),
            "start": Coefficients(**coefficients),
            "limits": BlockBounds(**{name: Bounds(**bounds) for name, bounds in state["limits"].items()}),
        }
    )


def _read_module(kind: Callable[..., Module], state: State, **parts: Any) -> Module:
    """An equinox module with arrays on the host, as `jax.device_get` returns them."""
    fields = {name: None if v is None else jax.device_put(v) for name, v in state.items() if name not in parts}
    return jax.device_get(kind(**jax.device_put(parts), **fields))


def _tuple_fields(state: State) -> State:
    return {name: _tuples(value) for name, value in state.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _optimization_state(optimization: Optimization) -> State:
    state = {field.name: getattr(optimization, field.name) for field in dataclasses.fields(optimization)}
    method = optimization.method if isinstance(optimization.method, str) else _not_stored(optimization.method)
    return {**state, "method": method, "method_options": _options_state(dict(optimization.method_options or {}))}


def _read_optimization(state: State) -> Optimization:
    arguments = {name: _read_option(value) for name, value in state.items()}
    try:
        return Optimization(**arguments)
    except OSError:  # Knitro is not installed here
        return Optimization(**{**arguments, "method": NotStored("Optimization('knitro')")})


def _iteration_state(iteration: Iteration) -> State:
    options = iteration.method_options
    if options.get("norm") is not None:
        options["norm"] = _not_stored(options["norm"])["not_stored"]
    return {"method": iteration.method, "method_options": options}


def _read_iteration(state: State) -> Iteration:
    options = dict(state["method_options"])
    if options.get("norm") is not None:
        options["norm"] = _NORMS.get(options["norm"], NotStored(options["norm"]))
    return Iteration(state["method"], options)


def _options_state(value: Any) -> Any:
    """Options of optimisation routines, which may be anything: other objects than plain values are stored by name."""
    if isinstance(value, Mapping):
        return {"mapping": {str(name): _options_state(item) for name, item in value.items()}}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [_options_state(item) for item in value]}
    value = np.asarray(value) if isinstance(value, jax.Array) else value
    stored = value is None or isinstance(value, str | bool | int | float | np.bool_ | np.integer)
    if isinstance(value, np.ndarray):
        stored = storage.find_unsupported(value) is None
    return value if stored else _not_stored(value)


def _read_option(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "mapping":
        return {name: _read_option(item) for name, item in content.items()}
    if kind == "not_stored":
        return NotStored(content)
    return tuple(map(_read_option, content)) if kind == "tuple" else list(map(_read_option, content))


def _not_stored(value: Any) -> State:
    if isinstance(value, NotStored):
        return {"not_stored": value.name}
    named = value if hasattr(value, "__qualname__") else type(value)
    return {"not_stored": f"{named.__module__}.{named.__qualname__}"}


def _formulation_state(formulation: Formulation | None) -> State | None:
    if formulation is None:
        return None
    state = {name: getattr(formulation, name) for name in ("formula", "absorb", "absorb_method")}
    return {**state, "absorb_options": dict(formulation.absorb_options or {})}


def _read_formulation(state: State | None) -> Formulation | None:
    return None if state is None else Formulation(**state)


def integration_state(integration: Integration) -> State:
    """The tree of an integration."""
    names = ("specification", "size", "specification_options")
    return {name: getattr(integration, name) for name in names}


def table_state(
    data: Mapping[str, np.ndarray], table: str, fields: Collection[str], names: Collection[str]
) -> dict[str, np.ndarray]:
    """Columns that can be stored. The problem uses those in `fields`, perhaps numbered, and in `names`."""
    stored = {}
    for column, values in data.items():
        bad = storage.find_unsupported(values)
        if bad is None:
            stored[column] = values
            continue
        row = bad // (values.shape[1] if values.ndim == 2 else 1)
        kind = type(values.reshape(-1)[bad])
        text = (
            f"{table}: column '{column}' holds {kind.__module__}.{kind.__qualname__}, which a file cannot hold, "
            f"in {describe_rows(data, np.array([row]))}."
        )
        if column in names or re.sub(r"[0-9]+$", "", column) in fields:
            raise DataError(f"{text} Convert it before building the problem, for example with .astype(str).")
        warn_user(f"{text} The problem does not use the column, which is left out.", DataWarning)
    return stored
