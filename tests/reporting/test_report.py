"""Tables and progress lines: character by character PyBLP's where both show the same."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax.reporting import report, tables
from blpjax.reporting.report import Coefficients, Evaluation, ResultsSummary

NEVO_SIGMA = np.diag([0.3302, 2.4526, 0.0163, 0.2441])
NEVO_PI = np.array(
    [[5.4819, 0, 0.2037, 0], [15.8935, -1.2, 0, 2.6342], [-0.2506, 0, 0.0511, 0], [1.2650, 0, -0.8091, 0]]
)
RETURN = {"method": "1s", "optimization": ("return", {})}
INF = np.inf


@pytest.fixture(params=[2, 7])
def digits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Both libraries display this many digits."""
    monkeypatch.setattr(blpjax.options, "digits", request.param)
    monkeypatch.setattr(pyblp.options, "digits", request.param)
    return request.param


class Pyblp(warnings.catch_warnings):
    """No warnings from PyBLP inside this context, and its output in `lines`."""

    def __enter__(self) -> Any:
        self.before = pyblp.options.verbose, pyblp.options.verbose_output
        self.lines: list[str] = []
        pyblp.options.verbose, pyblp.options.verbose_output = True, self.lines.append
        super().__enter__()
        warnings.simplefilter("ignore")
        return self

    def __exit__(self, *details: object) -> None:
        pyblp.options.verbose, pyblp.options.verbose_output = self.before
        super().__exit__(*details)


@pytest.fixture(scope="module")
def problems() -> dict[str, Any]:
    """Nevo's full problem, and smaller ones on twenty of its markets."""
    products = pd.read_csv(pyblp.data.NEVO_PRODUCTS_LOCATION)
    agents = pd.read_csv(pyblp.data.NEVO_AGENTS_LOCATION)
    few = products[products["market_ids"].isin(products["market_ids"].unique()[:20])].reset_index(drop=True)
    few = few.assign(clustering_ids=few["product_ids"])
    formulation, integration = pyblp.Formulation, pyblp.Integration("product", 3)
    absorbed = formulation("0 + prices", absorb="C(product_ids)")
    characteristics = formulation("1 + prices + sugar + mushy")
    demographics = formulation("0 + income + income_squared + age + child")
    simple = formulation("1 + prices + sugar")
    with Pyblp():
        return {
            "nevo": pyblp.Problem((absorbed, characteristics), products, demographics, agents),
            "constant": pyblp.Problem((simple, formulation("1")), few, integration=integration),
            "two": pyblp.Problem((simple, formulation("1 + mushy")), few, integration=integration),
            "logit": pyblp.Problem(simple, few),
            "absorbed": pyblp.Problem(formulation("prices", absorb="C(city_ids) + C(product_ids)"), few),
            "nested": pyblp.Problem(simple, few.assign(nesting_ids=few["mushy"])),
        }


# Problem, arguments of PyBLP's solve, and what its results do not know: whether there are bounds, and free parameters.
CASES: dict[str, tuple[str, dict[str, Any], bool, bool]] = {
    "demographics": (
        "nevo",
        {"sigma": NEVO_SIGMA, "pi": NEVO_PI, **RETURN, "check_optimality": "gradient"},
        True,
        True,
    ),
    "free off-diagonal": (
        "two",
        {"sigma": [[0.1, 0], [0.2, 0.3]], **RETURN, "check_optimality": "gradient", "se_type": "clustered"},
        True,
        True,
    ),
    "fixed off-diagonal": (
        "two",
        {
            "sigma": [[0.1, 0], [0.2, 0.3]],
            "sigma_bounds": ([[0, 0], [0.2, 0]], [[INF, 0], [0.2, INF]]),
            **RETURN,
            "check_optimality": "gradient",
        },
        True,
        True,
    ),
    "one bounded parameter": ("constant", {"sigma": 0.5, **RETURN}, True, True),
    "one unbounded parameter": ("constant", {"sigma": 0.5, "sigma_bounds": (-INF, INF), **RETURN}, False, True),
    "fixed sigma": ("constant", {"sigma": 0.5, "sigma_bounds": (0.5, 0.5), **RETURN}, False, False),
    "logit": ("logit", {}, False, False),
    "unadjusted logit": ("absorbed", {"se_type": "unadjusted", "method": "1s"}, False, False),
    "bounded linear parameters": (
        "logit",
        {"beta": [-3, -20, 0.01], "beta_bounds": ([-5, -30, 0], [3, 0, 1]), **RETURN},
        True,
        True,
    ),
    "not converged": ("logit", {"beta": [-3, -20, 0.01], "optimization": ("bfgs", {"maxiter": 1})}, False, True),
    "nested logit": ("nested", {"rho": [0.3, 0.4], **RETURN, "check_optimality": "gradient"}, True, True),
}
SOLVED: dict[str, Any] = {}


def solved(problems: dict[str, Any], case: str) -> Any:
    """Solve each case once, whatever the digits."""
    if case not in SOLVED:
        name, arguments, _, _ = CASES[case]
        if "optimization" in arguments:
            arguments = {**arguments, "optimization": pyblp.Optimization(*arguments["optimization"])}
        with Pyblp():
            SOLVED[case] = problems[name].solve(**arguments)
    return SOLVED[case]


def described(summary: ResultsSummary) -> str:
    """Results as they are printed."""
    return "\n\n".join(map(str, report.summarise_results(summary)))


def summary_of(results: Any, arguments: Mapping[str, Any], reduced: bool, optimised: bool) -> ResultsSummary:
    """What PyBLP's results say, in blpjax's words."""
    has_X2, eigenvalues = results.sigma.size > 0, results.reduced_hessian_eigenvalues
    linear = {
        name.capitalize(): Coefficients(getattr(results, f"{name}_labels"), getattr(results, name), se)
        for name in ["rho", "beta", "gamma"]
        if (se := getattr(results, f"{name}_se")).size
    }
    X2 = {"labels": results.sigma_labels, "column_labels": results.sigma_labels}
    squared = Coefficients(estimates=results.sigma_squared, standard_errors=results.sigma_squared_se, **X2)
    pi = Coefficients(results.sigma_labels, results.pi, results.pi_se, results.pi_labels) if results.pi.size else None
    several = len(results.parameters) > 1
    return ResultsSummary(
        step=results.step,
        objective=float(results.objective),
        se_type=arguments.get("se_type", "robust"),
        seconds=results.cumulative_total_time,
        objective_evaluations=results.cumulative_objective_evaluations,
        clipped_shares=results.clipped_shares.sum(),
        gradient_norm=results.projected_gradient_norm if optimised else None,
        eigenvalues=eigenvalues if optimised and np.isfinite(eigenvalues).all() else None,
        reduced=reduced,
        W_condition=np.linalg.cond(results.W),
        covariance_condition=np.linalg.cond(results.parameter_covariances) if several else None,
        converged=results.cumulative_converged if optimised else None,
        optimization_iterations=results.cumulative_optimization_iterations,
        fp_iterations=results.cumulative_fp_iterations.sum() if has_X2 else None,
        contraction_evaluations=results.cumulative_contraction_evaluations.sum() if has_X2 else None,
        clusters=(len(results.problem.unique_product_ids),),
        sigma=Coefficients(estimates=results.sigma, standard_errors=results.sigma_se, **X2) if has_X2 else None,
        sigma_squared=squared if has_X2 else None,
        pi=pi,
        linear=linear,
    )


# Against PyBLP


@pytest.mark.parametrize("case", CASES)
def test_results_read_as_pyblps(problems: dict[str, Any], case: str, digits: int) -> None:
    _, arguments, reduced, optimised = CASES[case]
    results = solved(problems, case)
    text = described(summary_of(results, arguments, reduced, optimised))
    if case == "not converged":
        warning, text = text.split("\n\n", 1)
        assert warning.startswith("NOT CONVERGED")
    # PyBLP centres " Hessian", with a space before it, in columns of 14 characters.
    expected = str(results).replace("    Hessian         Hessian   ", "   Hessian         Hessian    ")
    assert text == expected


def test_the_table_of_a_step_is_the_first_of_the_results(problems: dict[str, Any]) -> None:
    results = solved(problems, "logit")
    step = str(report.describe_step(summary_of(results, {}, False, False)))
    assert step.startswith("Problem Results Summary:\n=")
    assert str(results).startswith(f"{step}\n\nCumulative Statistics:")


@pytest.mark.parametrize("name", ["nevo", "constant", "two", "logit", "absorbed", "nested"])
def test_problems_read_as_pyblps(problems: dict[str, Any], name: str) -> None:
    problem = problems[name]
    dimensions = {key: getattr(problem, key) for key in "T N F I K1 K2 K3 D MD MS ED ES H".split()}
    matrices = {"X1": "_X1", "X2": "_X2", "X3": "_X3", "d": "_demographics"}
    formulations = {
        key: [str(column) for column in getattr(problem, f"{attribute}_formulations")]
        for key, attribute in matrices.items()
    }
    assert 0 in dimensions.values()  # and so left out
    assert "\n\n".join(map(str, report.describe_problem(dimensions, formulations))) == str(problem)


@pytest.mark.parametrize(
    ("name", "arguments", "projected"),
    [
        ("constant", {"sigma": 0.5, "optimization": ("l-bfgs-b", {"maxiter": 1})}, True),
        ("logit", {"beta": [-3, -20, 0.01], "optimization": ("bfgs", {"maxiter": 1})}, False),
    ],
)
def test_progress_reads_as_pyblps(
    problems: dict[str, Any], name: str, arguments: dict[str, Any], projected: bool, digits: int
) -> None:
    optimization = pyblp.Optimization(*arguments["optimization"])
    with Pyblp() as captured:
        problems[name].solve(**{**arguments, "optimization": optimization}, method="1s", check_optimality="gradient")
    lines = "\n".join(captured.lines).split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("GMM") and "Theta" not in line)
    header, rows = lines[start : start + 3], [line for line in lines[start + 3 :] if line.startswith(" 1  ")]
    theta_start = header[2].rindex("  ") + 2
    evaluations = [evaluation_of(row, theta_start) for row in rows[:-1]]  # the last row is of the results' table
    assert len(evaluations) > 1
    parameters = evaluations[0].theta.size
    assert report.progress_header(parameters, projected).split("\n") == header
    assert [report.progress_row(evaluation, projected) for evaluation in evaluations] == rows[:-1]


def evaluation_of(row: str, theta_start: int) -> Evaluation:
    """Read a row of PyBLP's progress."""
    step, time, *counts = row[:theta_start].split()
    hours, minutes, seconds = map(int, time.split(":"))
    objective, *improvement, gradient = map(float, counts[5:])
    return Evaluation(
        int(step),
        3600.0 * hours + 60 * minutes + seconds,
        *map(int, counts[:5]),
        objective=objective,
        theta=np.array([float(x) for x in row[theta_start:].split(",")]),
        gradient_norm=gradient,
        improvement=improvement[0] if improvement else None,
    )


# What PyBLP does not say


SUMMARY = ResultsSummary(step=1, objective=4.72, se_type="robust", seconds=0.1, objective_evaluations=9)


def test_convergence_is_said_on_top_only_where_it_failed() -> None:
    assert described(SUMMARY).startswith("Problem Results Summary")
    assert described(dataclasses.replace(SUMMARY, converged=True)).startswith("Problem Results Summary")
    failed = dataclasses.replace(SUMMARY, converged=False, failed_markets="Delta failed in market 'C01Q1'.")
    top, markets, _ = described(failed).split("\n\n", 2)
    assert top == "NOT CONVERGED: the optimization did not reach an optimum, so these are not estimates."
    assert markets == "Delta failed in market 'C01Q1'."


def test_parameters_at_a_bound_are_named_under_the_tables() -> None:
    text = described(dataclasses.replace(SUMMARY, at_bound=["sugar x sugar", "1 x 1"]))
    assert text.endswith("\n\nAt bound: sugar x sugar, 1 x 1.")
    assert "bound" not in described(SUMMARY)


def test_an_unknown_hessian_is_shown_as_such() -> None:
    text = str(report.describe_step(dataclasses.replace(SUMMARY, eigenvalues=np.array([np.nan, np.nan]))))
    assert text.count("NAN") == 2 and "Hessian" in text
    assert "Hessian" not in str(report.describe_step(SUMMARY))


def test_a_standard_error_that_could_not_be_computed_is_not_hidden() -> None:
    estimates, errors, free = np.array([1.0, 2.0]), np.array([np.nan, np.nan]), np.array([True, False])
    fixed = Coefficients(["prices", "sugar"], estimates, errors)
    text = described(dataclasses.replace(SUMMARY, linear={"Beta": fixed}))
    assert "NAN" not in text
    failed = dataclasses.replace(fixed, free=free)
    text = described(dataclasses.replace(SUMMARY, linear={"Beta": failed}))
    assert text.count("(NAN)") == 1


def test_coefficients_refuse_labels_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"estimates has shape \(2, 2\) but there are labels for 6 coefficients"):
        Coefficients(["1", "prices"], np.eye(2), np.eye(2), ["a", "b", "c"])


EVALUATION = Evaluation(1, 1.0, 2, 3, 40, 120, 0, 29.3, np.array([0.3, -2.4]), 363.5, 1.5)


@pytest.mark.parametrize(
    "changes", [{"objective": np.nan}, {"objective": 1e10, "failed_markets": "Delta failed in market 'C01Q1'."}]
)
def test_failed_evaluations_say_so(changes: dict[str, Any]) -> None:
    header = report.progress_header(2, True).split("\n")
    row, *rest = report.progress_row(dataclasses.replace(EVALUATION, **changes), True).split("\n")
    value = header[1].index("Value")
    assert row[value - 4 : value + 9].strip() == "failed"
    assert row.split() == ["1", "00:00:01", "2", "3", "40", "120", "0", "failed", "+3.000000E-01,", "-2.400000E+00"]
    assert rest == [text for name, text in changes.items() if name == "failed_markets"]
    assert len(row) == len(header[2]) == len(report.progress_row(EVALUATION, True))
    assert "failed" not in report.progress_row(EVALUATION, True)


def test_progress_lines_stay_short() -> None:
    many = dataclasses.replace(EVALUATION, theta=np.linspace(0, 1, 13), clipped_costs=0)
    lines = [*report.progress_header(13, True, supply=True).split("\n"), report.progress_row(many, True)]
    assert max(map(len, lines)) < 200 and lines[-1].rstrip().endswith("+1.666667E-01, ...")


# Small pieces


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (29.35334, "+2.94E+01"),
        (-0.0, "-0.00E+00"),
        (1e-300, "+1.00E-300"),
        (INF, "+INF"),
        (-INF, "-INF"),
        (np.nan, "NAN"),
    ],
)
def test_numbers(number: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blpjax.options, "digits", 3)
    assert report.format_number(number) == text
    assert report.format_se(number) == f"({text})"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "00:00:00"), (59.9, "00:01:00"), (3599.9, "01:00:00"), (90061.7, "25:01:02")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert report.format_seconds(seconds) == text


def test_tables_are_centred_between_borders() -> None:
    text = tables.text_table([["a", "|", "wide"]], [["four", "|", "1"]], "Title")
    assert text.split("\n") == ["Title:", "=" * 13, " a    |  wide", "----  |  ----", "four  |   1  ", "=" * 13]
    bare = tables.text_table([["a"]], [["b"]], include_border=False, minimum_widths=[3])
    assert bare.split("\n") == [" a ", "---", " b "]


def test_ragged_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        tables.text_table([["a", "b"]], [["1"]])
