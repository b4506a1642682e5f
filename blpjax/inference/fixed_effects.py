"""Tastes for characteristics that fixed effects absorb: minimum-distance projection of estimated fixed effects.

Fixed effects d of G products are linear in characteristics that do not vary within products, d = X b + xi. Estimated
effects are regressed on X with weights V^{-1}, the inverse covariances of their estimation errors (Chamberlain 1982;
Nevo 2000, 2001): b = (X'V^{-1}X)^{-1} X'V^{-1} d.
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd

from blpjax import options
from blpjax.exceptions import DataError, IdentificationError
from blpjax.inputs.expressions import variable_names
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import check_rank
from blpjax.inputs.table_format import describe_rows, find_vector, plain_value, read_table
from blpjax.model.parameters import ParameterLayout
from blpjax.objective import iv
from blpjax.objective.inference import CovarianceTypes
from blpjax.objective.problem_data import ProblemData
from blpjax.reporting import frames, report
from blpjax.reporting.tables import Part, Shown, Table

Weighting = Literal["gls", "ols"]

#: Elements of a characteristic may differ by this, relative to its largest element, within a product.
_CONSTANT = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class StepEstimates:
    """What is needed of the results of a GMM step.

    Attributes
    ----------
    data : those of the problem.
    layout : where the elements of theta belong.
    types : how covariances were estimated.
    xi, xi_fe : (N,) structural errors and fixed effects.
    residuals : (N,) what is orthogonal to the instruments of each block of moments.
    delta_by_theta : (N, P) derivatives of mean utilities.
    parameter_covariances : (Q, Q) covariances of sqrt(N) times the estimation error of theta and linear parameters.
    parameter_sensitivity : (Q, M) sensitivity of these to averaged moments.
    """

    data: ProblemData
    layout: ParameterLayout
    types: CovarianceTypes
    xi: np.ndarray
    xi_fe: np.ndarray
    residuals: list[np.ndarray]
    delta_by_theta: np.ndarray
    parameter_covariances: np.ndarray
    parameter_sensitivity: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FixedEffectProjection(Shown):
    """Fixed effects projected on characteristics, from `ProblemResults.project_fixed_effects`.

    There are G fixed effects and K characteristics.

    Attributes
    ----------
    labels : K names of the characteristics.
    coefficients, standard_errors : (K, 1) tastes for characteristics.
    covariances : (K, K) covariances of the coefficients, already divided by N.
    effect_ids : G levels of the absorbed variables, in sorted order; tuples where the effects are of an interaction.
    effects : (G, 1) estimated fixed effects.
    effect_covariances : (G, G) covariances of their estimation errors, already divided by N.
    characteristics : (G, K) characteristics.
    residuals : (G, 1) what characteristics leave unexplained, the products' unobserved mean quality.
    weighting : ``'gls'`` or ``'ols'``.
    """

    labels: tuple[str, ...]
    coefficients: np.ndarray
    standard_errors: np.ndarray
    covariances: np.ndarray
    effect_ids: list[Any]
    effects: np.ndarray
    effect_covariances: np.ndarray
    characteristics: np.ndarray
    residuals: np.ndarray
    weighting: Weighting

    @property
    def r_squared(self) -> float:
        """Share of the variance of fixed effects that characteristics explain."""
        return _explained(self.effects[:, 0], self.residuals[:, 0] - self.residuals.mean(), np.eye(len(self.effects)))

    @property
    def weighted_r_squared(self) -> float:
        """The same with weights V^{-1}; residuals are not centred."""
        return _explained(self.effects[:, 0], self.residuals[:, 0], self._weights)

    @cached_property
    def test(self) -> iv.ChiSquaredTest:
        """Test that characteristics explain fixed effects up to estimation error: xi'V^{-1}xi (Nevo 2000).

        Chi-squared with G - K degrees of freedom when coefficients are those of ``'gls'``.
        """
        from scipy.special import chdtrc  # a slow import that only this test needs

        u = self.residuals[:, 0]
        degrees = len(u) - len(self.labels)
        statistic = float(u @ self._weights @ u)
        p_value = float(chdtrc(degrees, statistic)) if degrees > 0 else np.nan
        return iv.ChiSquaredTest(*map(jnp.asarray, (statistic, float(degrees), p_value)))

    def estimates(self) -> pd.DataFrame:
        """One row for each characteristic: estimate, standard error, t statistic, p value, 95% confidence interval."""
        return frames.estimates_frame(self.labels, self.coefficients, self.standard_errors)

    @property
    def _weights(self) -> np.ndarray:
        return np.linalg.inv(self.effect_covariances)

    def _parts(self) -> list[Part]:
        numbers = (self.r_squared, self.weighted_r_squared, float(self.test.statistic), float(self.test.p_value))
        statistics = Table(
            [
                ["Fixed", "", "Weighted", "Chi-Squared", ""],
                ["Effects", "R-Squared", "R-Squared", "Statistic", "P-Value"],
            ],
            [[str(len(self.effects)), *map(report.format_number, numbers)]],
            f"Minimum-Distance Summary ({self.weighting.upper()})",
        )
        estimates = Table(
            [list(self.labels)],
            [
                [report.format_number(x) for x in self.coefficients[:, 0]],
                [report.format_se(x) for x in self.standard_errors[:, 0]],
            ],
            "Coefficient Estimates (SEs in Parentheses)",
        )
        return [statistics, estimates]


def project_fixed_effects(
    results: StepEstimates, formulation: Formulation, product_data: Any, weighting: Weighting
) -> FixedEffectProjection:
    """Project fixed effects on characteristics; see `ProblemResults.project_fixed_effects`."""
    if not isinstance(formulation, Formulation):
        raise TypeError(f"formulation must be a Formulation, not {type(formulation).__name__}.")
    if formulation.absorb is not None:
        raise ValueError("Nothing can be absorbed from characteristics of fixed effects. Remove absorb.")
    if weighting not in ("gls", "ols"):
        raise ValueError(f"weighting must be 'gls' or 'ols', not {weighting!r}.")
    names = _absorbed_names(results.data)
    keys, levels, codes = _find_levels(results.data.product_table.data, names)
    X, labels = _characteristics(results.data.product_table.data, formulation, product_data, names, keys)
    estimates, covariances = _estimate_effects(results, codes, levels)
    if len(levels) < len(labels):
        raise IdentificationError(
            f"There are fewer fixed effects ({len(levels)}) than characteristics ({len(labels)}: {', '.join(labels)})."
        )
    check_rank(X, labels, "formulation", None, options.collinear_atol, options.collinear_rtol)
    V = covariances
    scale = np.sqrt(np.diag(V))
    if weighting == "gls" and np.linalg.eigvalsh(V / np.outer(scale, scale))[0] < 1e-12:
        raise IdentificationError(
            f"The covariances of the {len(levels)} fixed effects are singular, so they cannot weight a projection. "
            "This happens when clusters are fewer than fixed effects, or contain them. Use weighting='ols'."
        )
    WX = np.linalg.solve(V, X) if weighting == "gls" else X
    A = np.linalg.solve(X.T @ WX, WX.T)
    b, covariances_of_b = A @ estimates, A @ V @ A.T
    return FixedEffectProjection(
        labels=labels,
        coefficients=b[:, None],
        standard_errors=np.sqrt(np.diag(covariances_of_b))[:, None],
        covariances=covariances_of_b,
        effect_ids=levels,
        effects=estimates[:, None],
        effect_covariances=V,
        characteristics=X,
        residuals=(estimates - X @ b)[:, None],
        weighting=weighting,
    )


def _absorbed_names(data: ProblemData) -> list[str]:
    """Variables whose combinations of levels have a fixed effect each."""
    X1 = data.product_formulations[0]
    terms = () if X1 is None else X1.absorb_terms
    if not terms:
        raise ValueError("There are no fixed effects to project: the formulation of X1 absorbs none.")
    if len(terms) > 1:
        raise NotImplementedError(
            "Fixed effects in several dimensions cannot be projected. Absorb the one whose effects characteristics "
            "explain, and add the others to the formula of X1, for example as C(market_ids)."
        )
    return sorted({name for factor in terms[0].factors for name in variable_names(factor)})


def _find_levels(
    data: Mapping[str, np.ndarray], names: list[str], table: str = "product_data"
) -> tuple[pd.DataFrame, list[Any], np.ndarray]:
    """A row for each combination of levels, in sorted order, the same as values or tuples, and codes of rows (N,)."""
    frame = pd.DataFrame({name: find_vector(data, name, table, "the absorbed fixed effects") for name in names})
    grouped = frame.groupby(names, sort=True)
    keys = frame.drop_duplicates().sort_values(names, ignore_index=True)
    rows = [tuple(map(plain_value, row)) for row in keys.itertuples(index=False)]
    levels = [row[0] for row in rows] if len(names) == 1 else rows
    return keys, levels, grouped.ngroup().to_numpy()


def _characteristics(
    known: Mapping[str, np.ndarray], formulation: Formulation, product_data: Any, names: list[str], keys: pd.DataFrame
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Characteristics (G, K) of the fixed effects in `keys`, from a table in which they do not vary within effects."""
    data = known if product_data is None else read_table(product_data, "product_data")
    design = formulation.build(data)
    found, levels, codes = _find_levels(data, names)
    first = np.array([np.flatnonzero(codes == g)[0] for g in range(len(levels))])
    values = design.values[first]
    differences = np.abs(design.values - values[codes])
    varying = differences > _CONSTANT * np.abs(design.values).max(axis=0, initial=0.0)
    for k, label in enumerate(design.labels):
        if varying[:, k].any():
            row = np.flatnonzero(varying[:, k])
            raise DataError(
                f"product_data: '{label}' varies within {_quote(names)}, so it cannot explain fixed effects: see "
                f"{describe_rows(data, row)}. Its coefficient is identified in X1."
            )
    places = keys.merge(found.assign(place=np.arange(len(levels))), on=names, how="left")["place"]
    if places.isna().any():
        missing = keys[places.isna().to_numpy()].iloc[0].tolist()
        raise DataError(f"product_data: there is no row for {_quote(names)} = {', '.join(map(repr, missing))}.")
    return values[places.to_numpy(int)], design.labels


def _estimate_effects(results: StepEstimates, codes: np.ndarray, levels: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    r"""Fixed effects (G,) and covariances (G, G) of their estimation errors.

    With `D` the indicators of the effects, moments ``D'xi / N`` hold exactly, so that to first order

        d_hat - d = (D'D)^{-1} D'xi + B (theta_hat - theta),  theta_hat - theta = Lambda gbar,

    where B are means of ``d (delta - X1 beta) / d theta`` within groups, theta stands for all parameters, linear ones
    included, and Lambda is their sensitivity to the averaged moments gbar. Covariances are those of the contributions
    of products (or clusters) to both.
    """
    from scipy.sparse import csr_matrix  # a slow import that only projections need

    if not np.isfinite(results.parameter_covariances).all():
        raise ValueError("There are no covariances of parameters, which only the last GMM step has.")
    N, G = codes.size, len(levels)
    counts = np.bincount(codes, minlength=G)
    if (counts < 2).any():
        g = int(np.argmax(counts < 2))
        raise DataError(
            f"product_data: the fixed effect of {levels[g]!r} has a single row, so that the effect and the structural "
            "error cannot be told apart. Drop products that are in a single market."
        )
    means = csr_matrix((1 / counts[codes], (codes, np.arange(N))), (G, N))
    B = means @ _derivatives(results)
    Lambda = results.parameter_sensitivity
    # N times covariances of D'xi / N, and of D'xi / N with gbar
    own, cross = _indicator_covariances(results, codes, G)
    inverse = N / counts
    mixed = B @ Lambda @ cross.T * inverse
    V = B @ results.parameter_covariances @ B.T + mixed + mixed.T + own * np.outer(inverse, inverse)
    return means @ results.xi_fe, (V + V.T) / 2 / N


def _derivatives(results: StepEstimates) -> np.ndarray:
    """Derivatives (N, Q) of ``delta - X1 beta`` in theta and the concentrated elements of beta and gamma."""
    layout = results.layout
    X1 = np.asarray(results.data.model_data.demand.X_unabsorbed)
    by_theta = np.array(results.delta_by_theta)
    by_theta[:, layout.part("beta")] -= X1[:, [k for (k,) in layout.beta]]
    others = np.zeros((len(X1), len(layout.concentrated_gamma)))
    return np.hstack([by_theta, -X1[:, list(layout.concentrated_beta)], others])


def _indicator_covariances(results: StepEstimates, codes: np.ndarray, G: int) -> tuple[np.ndarray, np.ndarray]:
    """Covariances (G, G) of the moments ``D'xi`` and those (G, M) with the others, in the manner of the results' S."""
    from scipy.sparse import csr_matrix

    data, xi, types = results.data.model_data, results.xi, results.types
    N = xi.size
    u = results.residuals
    Z = [np.asarray(instruments) for instruments in data.instruments]
    indicators = csr_matrix((np.ones(N), (np.arange(N), codes)), (N, G))
    if types.se_type == "unadjusted":
        sums = [np.mean((xi - xi.mean()) * (e - e.mean())) * (indicators.T @ z) for e, z in zip(u, Z, strict=True)]
        return np.diag(xi.var() * np.bincount(codes, minlength=G)) / N, np.hstack(sums) / N
    contributions = indicators.multiply(xi[:, None]).tocsr()
    others = np.hstack([z * e[:, None] for e, z in zip(u, Z, strict=True)])
    if types.center_moments:
        others = others - others.mean(axis=0)
    if types.se_type == "clustered":
        clusters, size = results.data.clusters
        if isinstance(size, tuple):
            raise NotImplementedError(
                "Fixed effects cannot be projected where standard errors are clustered in several ways. Solve with one "
                "column of clustering_ids, or with se_type='robust'."
            )
        sums_by_cluster = csr_matrix((np.ones(N), (clusters, np.arange(N))), (size, N))
        contributions, others = sums_by_cluster @ contributions, sums_by_cluster @ others
    return (contributions.T @ contributions).toarray() / N, contributions.T @ others / N


def _explained(effects: np.ndarray, residuals: np.ndarray, W: np.ndarray) -> float:
    deviations = effects - effects.mean()
    total = deviations @ W @ deviations
    return float(1 - residuals @ W @ residuals / total) if total > 0 else float("nan")


def _quote(names: list[str]) -> str:
    return " x ".join(f"'{name}'" for name in names)
