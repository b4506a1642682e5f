"""Docstrings of the library as pages show them, and which names have pages."""

import re
from typing import Any

import blpjax

#: Pages of the reference: titles of groups, and names of `blpjax` in them. A test compares them with `blpjax.__all__`.
GROUPS = {
    "Data and formulas": (
        ["Formulation", "Integration", "build_integration", "build_matrix", "build_ownership", "build_id_data"]
        + [
            "build_blp_instruments",
            "build_differentiation_instruments",
            "build_agent_product_data",
            "data_to_dict",
            "data",
        ]
    ),
    "Problems": (
        ["Problem", "Iteration", "Optimization", "OptimizationProgress", "Starts", "FracStarts", "Transformation"]
        + ["MomentBlock", "SampleMoments", "Point", "ModelFunctions", "Products", "Agents"]
        + ["OptimalInstrumentProblem", "ImportanceSamplingProblem"]
    ),
    "Results": (
        ["ProblemResults", "LikelihoodResults", "compare_estimates", "EstimatesTable", "DeltaMethodResults"]
        + ["BootstrappedResults", "ReestimationResults", "OptimalInstrumentResults", "ImportanceSamplingResults"]
        + ["FixedEffectProjection", "load"]
    ),
    "Counterfactuals": ["Counterfactual", "Taxes", "compare"],
    "Conduct": (
        ["Conduct", "Bertrand", "Cournot", "Mixed", "Monopoly", "PerfectCompetition", "Stackelberg", "TwoTier"]
        + ["ResalePriceMaintenance", "Bargaining", "RuleOfThumb", "ConstantMarkup", "conduct", "conditions"]
        + ["PricedMarket", "Parameter"]
    ),
    "Micro data": ["MicroDataset", "MicroPart", "MicroMoment", "micro_moments", "SurveyMoments", "MicroLikelihood"],
    "Simulation and studies": (
        ["Simulation", "SimulationResults", "MonteCarlo", "MonteCarloResults", "OptimalInstruments"]
    ),
    "For users of R": ["problem_from_formula", "estimation_summary"],
    "Settings, files and errors": ["options", "exceptions", "save_pickle", "read_pickle", "parallel", "__version__"],
}
#: Names that are in no group come last, in one of their own.
if _others := sorted({*blpjax.__all__} - {name for names in GROUPS.values() for name in names}):
    GROUPS["Other names"] = _others

#: Pages of what is no name of `blpjax`: titles, and modules whose public members they have.
MODULES = {
    "plots": ["blpjax.plots"],
    "model": ["blpjax.model.model", "blpjax.model.scenario"],
    "kernels": [
        f"blpjax.kernels.{name}"
        for name in ("shares", "contraction", "demand", "substitution", "markups", "equilibrium", "micro", "likelihood")
        + ("implicit", "linear_algebra")
    ],
    "objective": ["blpjax.objective.iv"],
}
#: What variables of examples are.
VARIABLES = {
    "results": "ProblemResults",
    "problem": "Problem",
    "outcome": "Counterfactual",
    "study": "MonteCarlo",
    "simulation": "Simulation",
    "draws": "ReestimationResults",
}
#: First parts of names that have documentation.
DOCUMENTED = {*blpjax.__all__, "plots", "kernels", "model", "objective"}

_SECTION = re.compile(r"^(Parameters|Attributes|Returns|Raises|Warns|Notes|Yields)\n-+\n", re.MULTILINE)
#: So long are lines of docstrings of methods at most.
_WIDTH = 110
_ENTRY = re.compile(r"^(?P<names>[A-Za-z_*][\w*., ()']*?) : (?P<text>.*)$")


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Sections of a docstring as rubrics, and their entries as definitions: the names, and what is said of them."""
    text = "\n".join(lines)
    parts = _SECTION.split(text)
    found = [parts[0].rstrip("\n")]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        found += ["", f".. rubric:: {title}", ""]
        named = title in ("Parameters", "Attributes")
        found += _entries(body.rstrip("\n").split("\n")) if named else body.rstrip("\n").split("\n")
    lines[:] = "\n".join(found).split("\n")
    if lines[-1]:
        lines.append("")


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what is there for other parts of the library."""
    hidden = {"ask", "build_agents", "evaluate_output", "formulated", "from_state", "layout", "model_in"}
    hidden |= {"moment_types", "output_tables", "point", "survey_source", "draws"} | set(blpjax.Problem._hidden)
    return True if what == "class" and name in hidden - {"form", "data"} else None


def _entries(lines: list[str]) -> list[str]:
    found: list[str] = []
    for number, line in enumerate(lines):
        entry = _ENTRY.match(line)
        if entry is None:
            found.append(line if not line or line.startswith(" ") else f"    {line}" if found else line)
            continue
        names = ", ".join(f"``{one.strip()}``" for one in _split(entry["names"]))
        found += ["", names, f"    {entry['text']}"]
        if _ends_early(line, lines[number + 1 :]):
            found.append("")  # a type on a line of its own, and then what is said
    return [*found, ""]


def _ends_early(line: str, rest: list[str]) -> bool:
    """Whether the first word of the next line, which belongs to the same entry, would have had room."""
    if not rest or not rest[0].startswith(" "):
        return False
    return len(line) + 1 + len(rest[0].split()[0]) <= _WIDTH


def _split(names: str) -> list[str]:
    """Names that commas separate, but not those within parentheses: shapes stay with their name."""
    return re.split(r",\s*(?![^()]*\))", names)
