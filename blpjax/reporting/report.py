"""Text from plain arrays and labels: what users read about a problem, its progress and its results.

Everything here is told what to show: nothing is computed beyond formatting. Functions return strings, which callers
hand to `blpjax.options.output`. The headers are PyBLP's. Numbers have `options.digits` significant digits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from blpjax import options
from blpjax.reporting.tables import Part, Table, align, one_row_table, text_table

Integer = int | np.integer


@dataclass(frozen=True)
class Coefficients:
    """Estimates of a vector or a matrix of coefficients with their labels.

    labels : K strings, of the elements of a vector or of the rows of a matrix.
    estimates : (K,) or (K, 1) for a vector, (K, L) for a matrix.
    standard_errors : the same shape; NaN where there is none.
    column_labels : L strings for a matrix, empty for a vector.
    free : the same shape, whether each element was estimated. Fixed elements have no standard error in tables; one of a
        free element that could not be computed is shown as NAN. By default, elements with finite standard errors.
    """

    labels: Sequence[str]
    estimates: np.ndarray
    standard_errors: np.ndarray
    column_labels: Sequence[str] = ()
    free: np.ndarray | None = None

    def __post_init__(self) -> None:
        size = len(self.labels) * (len(self.column_labels) or 1)
        for name, array in [
            ("estimates", self.estimates),
            ("standard_errors", self.standard_errors),
            ("free", self.free),
        ]:
            if array is not None and array.size != size:
                raise ValueError(f"{name} has shape {array.shape} but there are labels for {size} coefficients.")

    @property
    def is_free(self) -> np.ndarray:
        """Whether each element was estimated, in the shape of the estimates."""
        return np.isfinite(self.standard_errors) if self.free is None else self.free


@dataclass(frozen=True)
class ResultsSummary:
    """What the tables of one estimation show. Counts and seconds are cumulative over GMM steps.

    step : GMM step.
    objective : GMM objective, or that of a likelihood.
    se_type : "robust", "clustered", "unadjusted", or "likelihood" where the objective is one.
    seconds : computation time.
    objective_evaluations : number of evaluations of the objective.
    clipped_shares : number of clipped shares.
    clipped_costs : number of clipped marginal costs; None leaves it out (no bounds on costs).
    gradient_norm : largest absolute element of the gradient (projected onto the bounds if `reduced`); None without
        nonlinear parameters.
    eigenvalues : (P,) of the Hessian, reduced if `reduced`; empty when it was not computed.
    reduced : whether some parameters had bounds, so that gradient and Hessian take them into account.
    W_condition, covariance_condition : condition numbers of the weighting matrix and of the parameters' covariances;
        None leaves them out.
    converged : whether the optimisation converged; None when there was nothing to optimise.
    optimization_iterations : of the optimisation; shown unless `converged` is None.
    fp_iterations, contraction_evaluations : summed over markets; None leaves them out (closed-form logit).
    clusters : numbers of clusters of each kind for clustered standard errors.
    sigma : (K2, K2), or None. Its upper triangle is not shown.
    sigma_squared : (K2, K2), or None. Shown when sigma has free or nonzero elements below its diagonal.
    pi : (K2, D), or None.
    phi : (1, 1) or (2, 2), or None.
    linear : vectors in the order in which they are shown by their names, for example {"Rho": ..., "Beta": ...}.
    at_bound : labels of the parameters that are at one of their bounds.
    failed_markets : a sentence on what failed in which markets; empty if nothing did.
    """

    step: Integer
    objective: float
    se_type: str
    seconds: float
    objective_evaluations: Integer
    clipped_shares: Integer = 0
    clipped_costs: Integer | None = None
    gradient_norm: float | None = None
    eigenvalues: np.ndarray | None = None
    reduced: bool = False
    W_condition: float | None = None
    covariance_condition: float | None = None
    converged: bool | np.bool_ | None = None
    optimization_iterations: Integer = 0
    fp_iterations: Integer | None = None
    contraction_evaluations: Integer | None = None
    clusters: tuple[int, ...] = (0,)
    sigma: Coefficients | None = None
    sigma_squared: Coefficients | None = None
    pi: Coefficients | None = None
    phi: Coefficients | None = None
    linear: Mapping[str, Coefficients] | None = None
    at_bound: Sequence[str] = ()
    failed_markets: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the objective, as progress shows it.

    step : GMM step.
    seconds : since the optimisation started.
    iterations, evaluations : of the optimiser so far.
    fp_iterations, contraction_evaluations : of this evaluation, summed over markets.
    clipped_shares : number of clipped shares.
    clipped_costs : number of clipped marginal costs; None without a supply side.
    objective : NaN when the evaluation failed.
    theta : (P,) nonlinear parameters.
    gradient_norm : largest absolute element of the (projected) gradient; None when there is no gradient.
    improvement : decrease from the best objective so far; None when there is none.
    failed_markets : a sentence on what failed in which markets; empty if nothing did.
    """

    step: Integer
    seconds: float
    iterations: Integer
    evaluations: Integer
    fp_iterations: Integer
    contraction_evaluations: Integer
    clipped_shares: Integer
    objective: float
    theta: np.ndarray
    gradient_norm: float | None = None
    improvement: float | None = None
    failed_markets: str = ""
    clipped_costs: Integer | None = None

    @property
    def failed(self) -> bool:
        """Whether the evaluation failed, also where a failure was given a finite objective as a punishment."""
        return bool(self.failed_markets) or not math.isfinite(self.objective)


def format_number(x: float) -> str:
    """Format a number with `options.digits` significant digits, for example `+2.935334E+01`, `+INF` or `NAN`."""
    return "NAN" if math.isnan(x) else f"{x:+.{options.digits - 1}E}"


def format_se(x: float) -> str:
    """Format a standard error as `format_number` does, in parentheses."""
    return f"({format_number(x)})"


def format_seconds(seconds: float) -> str:
    """Format a finite number of seconds as hours, minutes and seconds, for example `00:01:30`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


FORMULATION_NAMES = {
    "X1": "X1: Linear Characteristics",
    "X2": "X2: Nonlinear Characteristics",
    "X3": "X3: Linear Cost Characteristics",
    "d": "d: Demographics",
}


def describe_problem(dimensions: Mapping[str, Integer], formulations: Mapping[str, Sequence[str]]) -> list[Table]:
    """Describe a problem by its dimensions and by the columns of its matrices, in two tables.

    Parameters
    ----------
    dimensions : by name, for example {"T": 94, "N": 2256}, in the order in which to show them. Zeros are left out.
    formulations : column labels by "X1", "X2", "X3", "d" or a longer name for a row. Empty ones are left out.

    """
    sizes = {name: size for name, size in dimensions.items() if size}
    filled = {FORMULATION_NAMES.get(name, name): labels for name, labels in formulations.items() if len(labels)}
    count = max(map(len, filled.values()), default=0)
    return [
        Table([[f" {name} " for name in sizes]], [[str(size) for size in sizes.values()]], "Dimensions"),
        Table(
            [["Column Indices:", *(f" {index} " for index in range(count))]],
            [[name, *labels, *[""] * (count - len(labels))] for name, labels in filled.items()],
            "Formulations",
        ),
    ]


#: Progress lines show so many elements of theta, so that they stay shorter than 190 characters.
_SHOWN_ELEMENTS = 3

# Names of the columns of progress lines. Those of the gradient depend on whether there are bounds.
_PROGRESS = [
    ("GMM", "Step"),
    ("Computation", "Time"),
    ("Optimization", "Iterations"),
    ("Objective", "Evaluations"),
    ("Fixed Point", "Iterations"),
    ("Contraction", "Evaluations"),
    ("Clipped", "Shares"),
    ("Objective", "Value"),
    ("Objective", "Improvement"),
]


def progress_header(parameters: Integer, projected: bool, supply: bool = False) -> str:
    """Head the rows of `progress_row`.

    Parameters
    ----------
    parameters : number of nonlinear parameters.
    projected : whether there are bounds, so that norms are those of the projected gradient.
    supply : whether there is a supply side, so that clipped costs are counted.
    """
    header = _progress_columns(projected, supply)
    return text_table(header, [], include_border=False, minimum_widths=_progress_widths(header, int(parameters)))


def progress_row(evaluation: Evaluation, projected: bool) -> str:
    """Describe an evaluation in a row, and in a second line what failed in which markets if something did.

    Of theta the row has the first elements.
    """
    number = "" if evaluation.failed else format_number(evaluation.objective)
    gradient_norm, improvement = evaluation.gradient_norm, evaluation.improvement
    if evaluation.failed:
        gradient_norm = improvement = None
    cells = [
        str(evaluation.step),
        format_seconds(evaluation.seconds),
        str(evaluation.iterations),
        str(evaluation.evaluations),
        str(evaluation.fp_iterations),
        str(evaluation.contraction_evaluations),
        str(evaluation.clipped_shares),
        *([] if evaluation.clipped_costs is None else [str(evaluation.clipped_costs)]),
        number or "failed",
        "" if improvement is None else format_number(improvement),
        "" if gradient_norm is None else format_number(gradient_norm),
        ", ".join(format_number(x) for x in evaluation.theta[:_SHOWN_ELEMENTS])
        + ", ..." * (evaluation.theta.size > _SHOWN_ELEMENTS),
    ]
    columns = _progress_columns(projected, evaluation.clipped_costs is not None)
    row = align(cells, _progress_widths(columns, evaluation.theta.size))
    return f"{row}\n{evaluation.failed_markets}" if evaluation.failed_markets else row


def _progress_columns(projected: bool, supply: bool) -> list[list[str]]:
    columns = [*_PROGRESS, _gradient_name(projected), ("", "Theta")]
    if supply:
        columns.insert(_PROGRESS.index(("Clipped", "Shares")) + 1, ("Clipped", "Costs"))
    return [list(line) for line in zip(*columns, strict=True)]


def _progress_widths(header: list[list[str]], parameters: int) -> list[int]:
    """Return widths that hold any number with an exponent of two digits."""
    number = len(format_number(-1.0))
    widths = [max(len(top), len(bottom)) for top, bottom in zip(*header, strict=True)]
    theta = (number + 2) * min(parameters, _SHOWN_ELEMENTS) - 2 + len(", ...") * (parameters > _SHOWN_ELEMENTS)
    return [*widths[:-4], *(max(number, width) for width in widths[-4:-1]), max(5, theta)]


def _gradient_name(reduced: bool) -> tuple[str, str]:
    return ("Projected", "Gradient Norm") if reduced else ("Gradient", "Norm")


def describe_step(summary: ResultsSummary) -> Table:
    """Describe the outcome of a GMM step: its objective and what tells whether that is an optimum."""
    columns = {} if summary.se_type == "likelihood" else {("GMM", "Step"): str(summary.step)}
    columns["Objective", "Value"] = format_number(summary.objective)
    if summary.gradient_norm is not None:
        columns[_gradient_name(summary.reduced)] = format_number(summary.gradient_norm)
    eigenvalues = np.array([]) if summary.eigenvalues is None else summary.eigenvalues
    hessian = "Reduced Hessian" if summary.reduced else "Hessian"
    if eigenvalues.size == 1:
        columns[("Reduced", "Hessian") if summary.reduced else ("", "Hessian")] = format_number(eigenvalues.item())
    elif eigenvalues.size > 1:
        columns[hessian, "Min Eigenvalue"] = format_number(eigenvalues.min())
        columns[hessian, "Max Eigenvalue"] = format_number(eigenvalues.max())
    columns["Clipped", "Shares"] = str(summary.clipped_shares)
    if summary.clipped_costs is not None:
        columns["Clipped", "Costs"] = str(summary.clipped_costs)
    if summary.W_condition is not None:
        columns["Weighting Matrix", "Condition Number"] = format_number(summary.W_condition)
    if summary.covariance_condition is not None:
        columns["Covariance Matrix", "Condition Number"] = format_number(summary.covariance_condition)
    return one_row_table(columns, "Problem Results Summary")


def summarise_results(summary: ResultsSummary) -> list[Part]:
    """Describe the results of an estimation, beginning with what went wrong if something did."""
    parts: list[Part] = [*describe_failure(summary), describe_step(summary), describe_effort(summary)]
    errors = {"unadjusted": "Unadjusted SEs", "likelihood": "Likelihood SEs"}.get(summary.se_type, "Robust SEs")
    if summary.se_type == "clustered":
        errors += f" Adjusted for {' and '.join(map(str, summary.clusters))} Clusters"
    if summary.sigma is not None or summary.pi is not None:
        parts.append(_describe_nonlinear(summary, f"Nonlinear Coefficient Estimates ({errors} in Parentheses)"))
    if summary.phi is not None:
        lines = _matrix_block("Phi:", summary.phi)
        parts.append(Table(lines[:1], lines[1:], f"Phi Estimates ({errors} in Parentheses)"))
    for name, coefficients in (summary.linear or {}).items():
        if len(coefficients.labels):
            estimates, standard_errors = (cells[0] for cells in _coefficient_cells(coefficients, as_row=True))
            title = f"{name} Estimates ({errors} in Parentheses)"
            parts.append(Table([list(map(str, coefficients.labels))], [estimates, standard_errors], title))
    return parts + describe_bounds(summary)


def describe_failure(summary: ResultsSummary) -> list[str]:
    """Sentences that say what went wrong; none where nothing did."""
    parts = []
    if summary.converged is not None and not summary.converged:
        parts.append("NOT CONVERGED: the optimization did not reach an optimum, so these are not estimates.")
    return parts + ([summary.failed_markets] if summary.failed_markets else [])


def describe_bounds(summary: ResultsSummary) -> list[str]:
    """A sentence on the parameters that are at bounds; none where no parameter is."""
    return [f"At bound: {', '.join(map(str, summary.at_bound))}."] if summary.at_bound else []


def describe_effort(summary: ResultsSummary) -> Table:
    """Time and counts, cumulative over steps."""
    columns = {("Computation", "Time"): format_seconds(summary.seconds)}
    if summary.converged is not None:
        columns["Optimizer", "Converged"] = "Yes" if summary.converged else "No"
        columns["Optimization", "Iterations"] = str(summary.optimization_iterations)
    columns["Objective", "Evaluations"] = str(summary.objective_evaluations)
    if summary.fp_iterations is not None:
        columns["Fixed Point", "Iterations"] = str(summary.fp_iterations)
    if summary.contraction_evaluations is not None:
        columns["Contraction", "Evaluations"] = str(summary.contraction_evaluations)
    return one_row_table(columns, "Cumulative Statistics")


def _describe_nonlinear(summary: ResultsSummary, title: str) -> Table:
    """Put Sigma, Sigma Squared if it tells more than Sigma, and Pi side by side."""
    sigma, squared = summary.sigma, summary.sigma_squared
    blocks = []
    if sigma is not None:
        blocks.append(_matrix_block("Sigma:", sigma, lower=True))
        if squared is not None and np.tril((sigma.estimates != 0) | sigma.is_free, -1).any():
            blocks.append(_matrix_block("Sigma Squared:", squared))
    if summary.pi is not None and summary.pi.column_labels:
        blocks.append(_matrix_block("Pi:", summary.pi))
    lines = [[cell for block in line for cell in ["|", *block]][1:] for line in zip(*blocks, strict=True)]
    return Table(lines[:1], lines[1:], title)


def _matrix_block(name: str, matrix: Coefficients, lower: bool = False) -> list[list[str]]:
    """Return a header line, and for each row of a matrix its estimates, standard errors, and a gap before the next."""
    lines = [[name, *map(str, matrix.column_labels)]]
    for row, (estimates, errors) in enumerate(zip(*_coefficient_cells(matrix), strict=True)):
        if lower:
            estimates[row + 1 :] = errors[row + 1 :] = [""] * (len(estimates) - row - 1)
        lines += [[""] * (len(estimates) + 1)] * (row > 0)
        lines += [[str(matrix.labels[row]), *estimates], ["", *errors]]
    return lines


def _coefficient_cells(coefficients: Coefficients, as_row: bool = False) -> tuple[list[list[str]], list[list[str]]]:
    """Return formatted estimates and standard errors, by rows of the matrix (or one row)."""
    shape = (1, -1) if as_row else (len(coefficients.labels), -1)
    estimates = [[format_number(x) for x in row] for row in coefficients.estimates.reshape(shape)]
    pairs = zip(coefficients.standard_errors.reshape(shape), coefficients.is_free.reshape(shape), strict=True)
    errors = [[format_se(x) if free else "" for x, free in zip(*row, strict=True)] for row in pairs]
    return estimates, errors
