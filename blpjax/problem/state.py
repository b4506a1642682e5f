"""Problems and GMM steps as trees of plain values, which `blpjax.machine.storage` writes and reads, and back.

Functions of the user (custom optimisation routines and norms) are stored by name only: see `NotStored`.
"""

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from blpjax import options as settings
from blpjax.economy.loops import Loops
from blpjax.estimation.options import StepOptions
from blpjax.estimation.step import StepResult
from blpjax.exceptions import DataError, DataWarning, IdentificationWarning
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import AgentNodes, Integration
from blpjax.inputs.table_format import describe_rows
from blpjax.inputs.tables import AgentTable, ProductTable
from blpjax.iteration import Iteration
from blpjax.machine import storage
from blpjax.model.inversion import Inversion
from blpjax.model.parameters import BlockBounds, Bounds, Coefficients, Labels, ParameterLayout, Parameters, UtilityForm
from blpjax.objective import iv
from blpjax.objective.inference import CovarianceTypes, StepSummary
from blpjax.objective.moments import Costs, Evaluation
from blpjax.optimize.optimize import Optimization, OptimizationOutcome, OptimizationStatus

State = dict[str, Any]
Module = TypeVar("Module", Coefficients, Costs, Evaluation, Inversion, StepSummary, iv.Inference)

#: Options that decide whether data are refused.
TOLERANCES = ("weights_tol", "collinear_atol", "collinear_rtol")

# Columns that problems use by their names, perhaps numbered.
_PRODUCT_FIELDS = (
    "market_ids",
    "firm_ids",
    "nesting_ids",
    "ownership",
    "product_ids",
    "clustering_ids",
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


@dataclasses.dataclass(frozen=True, eq=False)
class ProblemArguments:
    """Arguments of `Problem`, with data as checked, and the tolerances (options by name) that data were checked with.

    `agents` has the nodes and weights that the integration built: without a seed it would not build them again.
    """

    product_formulations: tuple[Formulation | None, ...]
    products: ProductTable
    agent_formulation: Formulation | None
    agents: AgentTable
    integration: Integration | None
    rc_types: Sequence[Any]
    epsilon_scale: float
    costs_type: str
    add_exogenous: bool
    tolerances: Mapping[str, float]


@dataclasses.dataclass(frozen=True, init=False, repr=False, eq=False)
class BuiltIntegration(Integration):
    """An integration with the nodes and weights that it has built already. `plain` is the integration without them."""

    plain: Integration
    built: AgentNodes

    def __init__(self, integration: Integration, built: AgentNodes) -> None:
        super().__init__(integration.specification, integration.size, integration.specification_options)
        object.__setattr__(self, "plain", integration)
        object.__setattr__(self, "built", built)

    def build_many(self, dimensions: int, ids: Any) -> AgentNodes:
        """Return what was built."""
        return self.built


def problem_state(arguments: ProblemArguments) -> State:
    """Return the tree of a problem.

    Raises
    ------
    DataError
        When a column that the problem uses holds objects that cannot be stored.
    NotImplementedError
        When a type of random coefficient is a function.

    Warns
    -----
    DataWarning
        When such a column is left out, because the problem does not use it.
    """
    formulations = arguments.product_formulations
    integration, agents = arguments.integration, arguments.agents
    product_names = {name for f in formulations if f is not None for name in (*f.names, *f.absorb_names)}
    agent_names = () if arguments.agent_formulation is None else arguments.agent_formulation.names
    built = {"market_ids": agents.market_ids, "nodes": agents.nodes, "weights": agents.weights}
    return {
        "product_formulations": [_formulation_state(formulation) for formulation in formulations],
        "product_data": _table_state(arguments.products.data, "product_data", _PRODUCT_FIELDS, product_names),
        "agent_formulation": _formulation_state(arguments.agent_formulation),
        "agent_data": _table_state(agents.data, "agent_data", _AGENT_FIELDS, agent_names) if agents.data else None,
        "integration": None if integration is None else _integration_state(integration),
        "built_agents": None if integration is None else _table_state(built, "agent_data", _AGENT_FIELDS, ()),
        "rc_types": [_stored_type(kind) for kind in arguments.rc_types],
        "epsilon_scale": arguments.epsilon_scale,
        "costs_type": arguments.costs_type,
        "add_exogenous": arguments.add_exogenous,
        "tolerances": dict(arguments.tolerances),
    }


def built_arguments(arguments: ProblemArguments) -> State:
    """Arguments of the constructor of `Problem` by name, with the nodes and weights that are built already."""
    integration, agents = arguments.integration, arguments.agents
    if integration is not None:
        integration = BuiltIntegration(integration, AgentNodes(agents.market_ids, agents.nodes, agents.weights))
    special = {
        "product_data": dict(arguments.products.data),
        "agent_data": dict(agents.data) or None,
        "integration": integration,
    }
    names = {field.name for field in dataclasses.fields(arguments)} - {"products", "agents", "tolerances"}
    plain = {name: getattr(arguments, name) for name in names}
    return {name: None if isinstance(value, list) and not value else value for name, value in plain.items()} | special


def read_problem(state: State) -> State:
    """Arguments of the constructor of `Problem` by name."""
    integration = state["integration"]
    if integration is not None:
        integration = BuiltIntegration(Integration(**integration), AgentNodes(**state["built_agents"]))
    return {
        "product_formulations": [_read_formulation(formulation) for formulation in state["product_formulations"]],
        "product_data": state["product_data"],
        "agent_formulation": _read_formulation(state["agent_formulation"]),
        "agent_data": state["agent_data"],
        "integration": integration,
        "rc_types": state.get("rc_types") or None,
        "epsilon_scale": state.get("epsilon_scale", 1.0),
        "costs_type": state["costs_type"],
        "add_exogenous": state["add_exogenous"],
    }


def _stored_type(kind: Any) -> str:
    if not isinstance(kind, str):
        raise NotImplementedError(
            f"rc_types has the function {getattr(kind, '__name__', kind)!r}, and files hold no code. Save the "
            "estimates themselves, for example results.to_dict(), or pickle the results."
        )
    return kind


@contextlib.contextmanager
def built_again(state: State) -> Iterator[None]:
    """Check data within this context as they were checked before, and do not say again what was said about them."""
    wanted = {"verbose": False} | {name: state["tolerances"][name] for name in TOLERANCES}
    before = {name: getattr(settings, name) for name in wanted}
    with warnings.catch_warnings():
        for category in (DataWarning, IdentificationWarning):
            warnings.simplefilter("ignore", category)
        try:
            for name, value in wanted.items():
                setattr(settings, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(settings, name, value)


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
    return Step(
        result=_read_result(state["result"]),
        options=StepOptions(
            **{
                **options,
                "parameters": _read_parameters(options["parameters"], form),
                "optimization": _read_optimization(options["optimization"]),
                "iteration": _read_iteration(options["iteration"]),
                "types": CovarianceTypes(**options["types"]),
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
                        Evaluation,
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
    coefficients = {name: jnp.asarray(values) for name, values in state["start"].items()}
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
    fields = {name: None if v is None else jnp.asarray(v) for name, v in state.items() if name not in parts}
    return jax.device_get(kind(**jax.tree.map(jnp.asarray, parts), **fields))


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


def _integration_state(integration: Integration) -> State:
    names = ("specification", "size", "specification_options")
    return {name: getattr(integration, name) for name in names}


def _table_state(
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
        warnings.warn(f"{text} The problem does not use the column, which is left out.", DataWarning, stacklevel=5)
    return stored
