"""Test of the independence of irrelevant alternatives (Gandhi and Houde 2020)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from blpjax.exceptions import IdentificationError
from blpjax.inputs.arguments import check_choice
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import refuse_endogenous
from blpjax.objective import iv
from blpjax.objective.build import exogenous_columns
from blpjax.objective.clusters import Clusters
from blpjax.objective.problem_data import ProblemData
from blpjax.objective.projections import orthonormal_basis
from blpjax.reporting import frames
from blpjax.reporting.tables import Part, Shown


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IIATest(Shown):
    """Whether what rivals are like explains mean utilities of the logit.

    Attributes
    ----------
    table : a row for each coefficient that is zero under the logit, with the columns parameter, estimate, se, t,
        p_value, lower and upper.
    statistic : Wald statistic that all are zero.
    degrees_of_freedom : number of these coefficients.
    p_value : probability of a larger statistic under the logit.
    se_type : type of standard errors.
    """

    table: pd.DataFrame
    statistic: float
    degrees_of_freedom: int
    p_value: float
    se_type: str

    def _parts(self) -> Sequence[Part]:
        test = f"chi2({self.degrees_of_freedom}) = {self.statistic:.4f}, p = {self.p_value:.4f}"
        return [f"IIA test with {self.se_type} standard errors: {test}", self.table]


def iia_test(problem: ProblemData, formulation: Formulation, instruments: Formulation | None, se_type: str) -> IIATest:
    """Two-stage least squares of ``log(s_j / s_0)`` on [X1, A]; see `Problem.run_iia_test`.

    Raises
    ------
    TypeError, ValueError, IdentificationError, DataError
        See there.
    """
    check_choice("se_type", se_type, ("robust", "clustered", "unadjusted"))
    clusters = None if problem.product_table.clustering_ids is None else problem.clusters
    if se_type == "clustered" and clusters is None:
        raise ValueError("se_type='clustered' needs a column 'clustering_ids' in product_data.")
    A, labels = _read_exogenous("formulation", formulation, problem)
    equation = problem.model_data.demand
    X1, Z = np.asarray(equation.X), np.asarray(equation.Z)
    if instruments is not None:
        exogenous = X1[:, exogenous_columns(problem.designs[0].columns, "prices")]
        Z = np.c_[exogenous, problem.residualize_demand(_read_exogenous("instruments", instruments, problem)[0])]
    residuals = problem.residualize_demand(A)
    before, after = orthonormal_basis(X1).shape[1], orthonormal_basis(np.c_[X1, residuals]).shape[1]
    if after < before + A.shape[1]:
        raise IdentificationError(
            f"Columns of the formulation '{formulation.formula}' are collinear with each other, with X1, or with its "
            "fixed effects. Leave out constants and characteristics that X1 has."
        )
    X, Z = np.c_[X1, residuals], orthonormal_basis(np.c_[Z, residuals])
    y = problem.residualize_demand(problem.closed_form_delta(None)[:, None])[:, 0]
    return _estimate(y, X, Z, labels, se_type, clusters)


def _read_exogenous(name: str, formulation: Formulation, problem: ProblemData) -> tuple[np.ndarray, list[str]]:
    """The matrix (N, K) of a formulation, the argument `name`, with labels of its columns."""
    if not isinstance(formulation, Formulation):
        raise TypeError(f"{name} must be a Formulation, not {type(formulation).__name__}.")
    if formulation.absorb_terms:
        raise ValueError(f"{name} cannot absorb fixed effects: those of X1 are absorbed.")
    refuse_endogenous(name, formulation)
    design = formulation.build(problem.product_table.data)
    return design.values, list(design.labels)


def _estimate(
    y: np.ndarray,
    X: np.ndarray,
    Z: np.ndarray,
    labels: list[str],
    se_type: str,
    clusters: Clusters | None,
) -> IIATest:
    """The test of the last coefficients of a regression by two-stage least squares, those with `labels`."""
    N, K = X.shape
    W = iv.initial_weights([Z])
    step = iv.linear_step(iv.cross_moments([Z], [X]), W)
    if step.rank < K:
        raise IdentificationError(
            f"{Z.shape[1]} instruments do not identify {K} coefficients: beside exogenous columns of X1 and those of "
            "the formulation there have to be as many excluded instruments as columns of X1 with prices."
        )
    b = step.coefficients(iv.average_moments([Z], [y]))
    ids, count = (None, None) if clusters is None else clusters
    S = iv.moment_covariances([Z], [y - X @ b], kind=se_type, center=False, cluster_ids=ids, n_clusters=count)
    crossed = se_type == "clustered" and isinstance(count, tuple)
    robust = iv.moment_covariances([Z], [y - X @ b], kind="robust", center=False) if crossed else None
    G = -iv.cross_moments([Z], [X])
    found = iv.parameter_inference(G, W, S, N=N, se_type=se_type, step=1, robust=robust)
    tested = np.arange(K - len(labels), K)
    wald = iv.wald_test(b[tested], np.eye(K)[tested], found.covariances, N=N)
    table = frames.estimates_frame(labels, b[tested], found.standard_errors[tested])
    return IIATest(table, float(wald.statistic), int(wald.degrees_of_freedom), float(wald.p_value), se_type)
