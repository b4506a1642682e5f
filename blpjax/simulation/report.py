"""Tables of simulations and of their results."""

from collections.abc import Callable, Sequence

import numpy as np

from blpjax.model.parameters import Coefficients, Labels, UtilityForm
from blpjax.reporting.report import format_number, format_seconds
from blpjax.reporting.tables import Table, one_row_table


def describe_true_values(coefficients: Coefficients, labels: Labels, form: UtilityForm) -> list[Table]:
    """Tables of the parameters of a simulation; blocks without elements are left out."""
    sigma, pi = np.asarray(coefficients.sigma), np.asarray(coefficients.pi)
    parts, blocks = [], []
    if sigma.size:
        blocks.append(_block("Sigma:", labels.X2, labels.X2, sigma, lower=True))
        if np.tril(sigma != 0, -1).any():
            blocks.append(_block("Sigma Squared:", labels.X2, labels.X2, sigma @ sigma.T))
    if pi.size:
        blocks.append(_block("Pi:", labels.X2, labels.demographics, pi))
    if blocks:
        lines = [[cell for block in line for cell in ["|", *block]][1:] for line in zip(*blocks, strict=True)]
        parts.append(Table(lines[:1], lines[1:], "Nonlinear Coefficient True Values"))
    if np.size(coefficients.phi):
        lines = _block("Phi:", labels.errors, labels.errors, np.asarray(coefficients.phi))
        parts.append(Table(lines[:1], lines[1:], "Phi True Values"))
    nests = labels.of_rho(np.size(coefficients.rho))
    linear = (("Beta", labels.X1, coefficients.beta), ("Gamma", labels.X3, coefficients.gamma))
    tau = [f"{labels.X2[k]}: {name}" for k, name in form.tau]
    vectors = (("Rho", nests, coefficients.rho), ("Tau", tau, coefficients.tau))
    for name, columns, values in (*vectors, ("Kappa", labels.conduct, coefficients.kappa), *linear):
        if len(columns):
            numbers = [format_number(x) for x in np.asarray(values)]
            parts.append(Table([[str(label) for label in columns]], [numbers], f"{name} True Values"))
    return parts


def summarise_simulation(
    seconds: float,
    failures: int,
    iterations: int,
    evaluations: int,
    gradient_norms: np.ndarray | None,
    eigenvalues: np.ndarray | None,
) -> Table:
    """Table of the outcome of a simulation.

    Parameters
    ----------
    seconds : computation time.
    failures : number of markets in which loops failed.
    iterations, evaluations : of the loops, summed over markets.
    gradient_norms, eigenvalues : of firms' profits, None where they were not computed. NaN in failed markets.
    """
    columns = {
        ("Computation", "Time"): format_seconds(seconds),
        ("Fixed Point", "Failures"): str(failures),
        ("Fixed Point", "Iterations"): str(iterations),
        ("Contraction", "Evaluations"): str(evaluations),
    }
    if gradient_norms is not None:
        columns["Profit Gradients", "Max Norm"] = format_number(_extreme(gradient_norms, np.max))
    if eigenvalues is not None:
        columns["Profit Hessians", "Min Eigenvalue"] = format_number(_extreme(eigenvalues, np.min))
        columns["Profit Hessians", "Max Eigenvalue"] = format_number(_extreme(eigenvalues, np.max))
    return one_row_table(columns, "Simulation Results Summary")


def _extreme(values: np.ndarray, choose: Callable[[np.ndarray], float]) -> float:
    known = values[np.isfinite(values)]
    return float(choose(known)) if known.size else float("nan")


def _block(
    name: str, rows: Sequence[str], columns: Sequence[str], values: np.ndarray, lower: bool = False
) -> list[list[str]]:
    """A header line, and a line for each row of a matrix, perhaps without what is above the diagonal."""
    lines = [[name, *map(str, columns)]]
    for k, (label, row) in enumerate(zip(rows, values, strict=True)):
        lines.append([str(label), *("" if lower and m > k else format_number(x) for m, x in enumerate(row))])
    return lines
