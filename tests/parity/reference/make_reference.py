"""Make the stored PyBLP results that the tests compare with.

Run one or more sections, or all of them when none is named::

    python tests/parity/reference/make_reference.py                      # every section, about 12 minutes on one core
    python tests/parity/reference/make_reference.py nevo_bounded logit   # only these

Each section writes ``<section>.json`` beside this script. A file has one key per line: ``section``, ``versions`` and
``about``, then one key per array or per group of arrays. Arrays are nested lists of shortest round-trip floats, and
``null`` stands for NaN. Arrays with a row per product keep the first ``FIRST_ROWS`` rows only.

Optima are polished: a SciPy routine finds the basin, then Newton steps with a finite-difference Hessian of PyBLP's
analytic gradient run until the gradient no longer falls. A gradient norm alone says little on Nevo's data (the smallest
eigenvalue of the Hessian is 2.9e-5), so a polished section also stores its last Newton step, an estimate of the error
left in each element of theta.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import scipy
import scipy.optimize

HERE = Path(__file__).parent
FIRST_ROWS = 30
MARKET = "C01Q1"
SEED_OF_STARTS = 20260101
NUMBER_OF_STARTS = 5

SIGMA = np.diag([0.3302, 2.4526, 0.0163, 0.2441])
PI = np.array(
    [
        [5.4819, 0, 0.2037, 0],
        [15.8935, -1.2000, 0, 2.6342],
        [-0.2506, 0, 0.0511, 0],
        [1.2650, 0, -0.8091, 0],
    ]
)

Gradient = Callable[[np.ndarray], np.ndarray]
Content = dict[str, Any]


def main(names: list[str]) -> None:
    """Write the named sections, or all of them."""
    make(SECTIONS, names)


def make(sections: Mapping[str, Callable[[], Content]], names: Sequence[str]) -> None:
    """Write the named ones of these sections, or all of them."""
    pyblp.options.verbose = False
    unknown = sorted(set(names) - set(sections))
    if unknown:
        raise SystemExit(f"unknown section(s) {', '.join(unknown)}; there are {', '.join(sections)}")
    for name in names or sections:
        started = time.perf_counter()
        write(name, str(sections[name].__doc__), sections[name]())
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)


# --- problems -------------------------------------------------------------------------------------------------------


def _products() -> pd.DataFrame:
    return pd.read_csv(pyblp.data.NEVO_PRODUCTS_LOCATION)


def _product_formulations() -> tuple[pyblp.Formulation, pyblp.Formulation]:
    return (
        pyblp.Formulation("0 + prices", absorb="C(product_ids)"),
        pyblp.Formulation("1 + prices + sugar + mushy"),
    )


def _nevo(products: pd.DataFrame | None = None) -> pyblp.Problem:
    """Nevo's cereal data with demographics: four random coefficients, nine demographic interactions."""
    return pyblp.Problem(
        _product_formulations(),
        _products() if products is None else products,
        pyblp.Formulation("0 + income + income_squared + age + child"),
        pd.read_csv(pyblp.data.NEVO_AGENTS_LOCATION),
    )


def _tutorial(integration: pyblp.Integration) -> pyblp.Problem:
    """Nevo's cereal data without demographics, as in PyBLP's tutorial."""
    return pyblp.Problem(_product_formulations(), _products(), integration=integration)


def _monte_carlo() -> pyblp.Integration:
    return pyblp.Integration("monte_carlo", size=50, specification_options={"seed": 0})


# --- sections -------------------------------------------------------------------------------------------------------


def logit() -> Content:
    """Plain logit on Nevo's products, '0 + prices' with product effects absorbed, one and two steps."""
    products = _products()
    problem = pyblp.Problem(pyblp.Formulation("0 + prices", absorb="C(product_ids)"), products)
    content: Content = {"one_step": _linear(problem.solve(method="1s")), "two_step": _linear(problem.solve())}
    for kind in ("clustered", "unadjusted"):
        clustered = pyblp.Problem(
            pyblp.Formulation("0 + prices", absorb="C(product_ids)"),
            products.assign(clustering_ids=products["market_ids"]),
        )
        content[f"two_step_{kind}"] = _linear(clustered.solve(W_type=kind, se_type=kind))
    return content


def nevo_fixed() -> Content:
    """Nevo with demographics evaluated at the published starting values, one step; clustering_ids are market_ids.

    ``base`` has robust, centred moments and no clustering; ``variants`` are keyed by W_type and se_type (always equal)
    and by whether moments are centred. Column j of ``hessian_central`` differentiates the gradient by theta_j with
    central differences of fourth order.
    """
    options: dict[str, Any] = {"method": "1s", "optimization": pyblp.Optimization("return")}
    base = _nevo().solve(SIGMA, PI, **options)
    derivatives: list[np.ndarray] = []

    def record(initial: np.ndarray, bounds: object, function: Callable, callback: object) -> tuple[np.ndarray, bool]:
        derivatives.append(_hessian(_gradient_of(function), initial))
        return initial, True

    _nevo().solve(
        SIGMA, PI, method="1s", optimization=pyblp.Optimization(record), check_optimality="gradient", **_unbounded(4, 4)
    )
    problem = _nevo(_products().assign(clustering_ids=lambda data: data["market_ids"]))
    variants: Content = {}
    for kind in ("robust", "clustered", "unadjusted"):
        for center in (True, False):
            results = problem.solve(
                SIGMA, PI, check_optimality="gradient", W_type=kind, se_type=kind, center_moments=center, **options
            )
            variants[f"{kind}_{'centered' if center else 'uncentered'}"] = _errors(results) | {
                "updated_W": results.updated_W,
                "parameter_covariances": results.parameter_covariances,
                "moments_covariances": results.moments_covariances,
            }
    return {
        "base": _estimates(base) | _evaluation(base) | {"hessian_central": derivatives[0]},
        "variants": variants,
    }


def nevo_unbounded() -> Content:
    """Nevo with demographics, one step, from the published starting values, no bounds: the polished optimum."""
    polish = Polish("bfgs", {"gtol": 1e-5})
    results = _nevo().solve(SIGMA, PI, method="1s", optimization=pyblp.Optimization(polish), **_unbounded(4, 4))
    return _estimates(results) | _evaluation(results) | polish.report() | _post_estimation(results) | _tests(results)


def nevo_bounded() -> Content:
    """Nevo with demographics, one step, default bounds: the polished optimum, where sigma on sugar is at zero."""
    polish = Polish("l-bfgs-b", {"gtol": 1e-8, "ftol": 0, "maxiter": 1000, "maxfun": 2000})
    results = _nevo().solve(SIGMA, PI, method="1s", optimization=pyblp.Optimization(polish))
    return _estimates(results) | _evaluation(results) | polish.report()


def nevo_bfgs() -> Content:
    """Nevo with demographics, one step, by BFGS with gtol 1e-5: PyBLP's published way of estimating it, unpolished."""
    results = _nevo().solve(SIGMA, PI, method="1s", optimization=pyblp.Optimization("bfgs", {"gtol": 1e-5}))
    return _estimates(results) | counters(results)


def tutorial_mc() -> Content:
    """Tutorial results1: Monte Carlo draws (50, seed 0), unrestricted covariances, two steps, BFGS with gtol 1e-4."""
    return _tutorial_results(_monte_carlo(), np.ones((4, 4)))


def tutorial_product() -> Content:
    """Tutorial results2: product rule of level 5, unrestricted covariances, two steps, BFGS with gtol 1e-4."""
    return _tutorial_results(pyblp.Integration("product", size=5), np.ones((4, 4)))


def tutorial_diagonal() -> Content:
    """Tutorial results3: Monte Carlo draws (50, seed 0), diagonal Sigma, two steps, BFGS with gtol 1e-4."""
    return _tutorial_results(_monte_carlo(), np.eye(4))


def tutorial_mc_polished() -> Content:
    """As tutorial_mc, but with both steps polished; there are no bounds."""
    return _tutorial_polished(np.ones((4, 4)))


def tutorial_diagonal_polished() -> Content:
    """As tutorial_diagonal, but with both steps polished; there are no bounds."""
    return _tutorial_polished(np.eye(4))


def random_starts() -> Content:
    """Nevo with demographics, one step, BFGS with gtol 1e-5, from random starting values.

    For each start ``numpy.random.default_rng(20260101)`` draws four U(0, 5) factors of the published sigmas, then
    sixteen U(-3, 3) factors of the published Pi, row by row. ``seconds`` depend on the machine.
    """
    rng = np.random.default_rng(SEED_OF_STARTS)
    problem = _nevo()
    starts: list[Content] = []
    for number in range(NUMBER_OF_STARTS):
        sigma = SIGMA * np.diag(rng.uniform(0, 5, 4))
        pi = PI * rng.uniform(-3, 3, (4, 4))
        started = time.perf_counter()
        start: Content = {"sigma_start": sigma, "pi_start": pi}
        try:
            results = problem.solve(
                sigma,
                pi,
                method="1s",
                optimization=pyblp.Optimization("bfgs", {"gtol": 1e-5}),
                check_optimality="gradient",
            )
            start |= counters(results) | {
                name: getattr(results, name) for name in ("objective", "theta", "beta", "gradient")
            }
        except Exception as error:  # a start from which PyBLP fails is itself a result
            start |= {"error": f"{type(error).__name__}: {error}"[:300]}
        starts.append(start | {"seconds": round(time.perf_counter() - started, 1)})
        print(f"  start {number}: {start.get('objective')}, converged {start.get('converged')}", flush=True)
    return {"starts": starts}


SECTIONS: dict[str, Callable[[], Content]] = {
    section.__name__: section
    for section in (
        logit,
        nevo_fixed,
        nevo_bfgs,
        nevo_unbounded,
        nevo_bounded,
        tutorial_diagonal,
        tutorial_mc,
        tutorial_diagonal_polished,
        tutorial_mc_polished,
        tutorial_product,
        random_starts,
    )
}


def _tutorial_results(integration: pyblp.Integration, sigma: np.ndarray) -> Content:
    bfgs = pyblp.Optimization("bfgs", {"gtol": 1e-4})
    results = _tutorial(integration).solve(sigma=sigma, optimization=bfgs)
    return _estimates(results) | counters(results) | {"first_step": _estimates(results.last_results)}


def _tutorial_polished(sigma: np.ndarray) -> Content:
    polish = Polish("bfgs", {"gtol": 1e-5})
    results = _tutorial(_monte_carlo()).solve(sigma=sigma, optimization=pyblp.Optimization(polish), **_unbounded(4, 0))
    last = results.last_results
    return (
        _estimates(results) | _evaluation(results) | polish.report() | {"first_step": _estimates(last) | {"W": last.W}}
    )


# --- polishing ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)  # PyBLP looks routines up in a dictionary, so they must be hashable
class Polish:
    """A SciPy routine followed by Newton steps on the gradient, in the form of PyBLP's custom optimization routines.

    Parameters at a bound that the gradient pushes against stay there. After a solve, `hessian` (P, P),
    `last_step` (P,), `gradient_norm` and `scipy_message` describe the last step of the GMM estimation.
    """

    method: str
    options: Mapping[str, Any]
    hessian: np.ndarray | None = None
    last_step: np.ndarray | None = None
    gradient_norm: float = np.nan
    scipy_message: str = ""

    def __call__(
        self, initial: np.ndarray, bounds: Any, function: Callable, callback: Callable[[], None]
    ) -> tuple[np.ndarray, bool]:
        bounded = self.method == "l-bfgs-b"
        found = scipy.optimize.minimize(
            lambda theta: function(theta)[:2],
            initial,
            method=self.method,
            jac=True,
            options=dict(self.options),
            bounds=bounds if bounded else None,
            callback=lambda *_: callback(),
        )
        self.scipy_message = str(found.message)
        gradient = _gradient_of(function)
        theta, g = found.x, gradient(found.x)
        free = _free(theta, g, bounds)
        for _ in range(6):
            H = _hessian(gradient, theta)
            theta, g, fell = _newton(gradient, theta, g, H, free)
            callback()
            if not fell:
                break
        self.hessian = _hessian(gradient, theta)
        self.last_step = np.zeros_like(theta)
        self.last_step[free] = -np.linalg.solve(self.hessian[np.ix_(free, free)], g[free])
        self.gradient_norm = float(np.abs(g[free]).max())
        return theta, self.gradient_norm < 1e-6

    def report(self) -> Content:
        """Arrays to be stored: the central-difference Hessian and what is left of the error."""
        if self.hessian is None:
            raise RuntimeError("there is nothing to report before a solve")
        return {
            "hessian_central": self.hessian,
            "hessian_central_eigenvalues": np.linalg.eigvalsh((self.hessian + self.hessian.T) / 2),
            "polished_gradient_norm": self.gradient_norm,
            "polished_last_step": self.last_step,
            "scipy_message": self.scipy_message,
        }


def _newton(
    gradient: Gradient, theta: np.ndarray, g: np.ndarray, H: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Steps with one Hessian while they at least halve the gradient norm; whether the first of them did so."""
    fell = False
    for _ in range(5):
        step = np.zeros_like(theta)
        step[free] = -np.linalg.solve(H[np.ix_(free, free)], g[free])
        following = gradient(theta + step)
        if not np.abs(following[free]).max() < np.abs(g[free]).max() / 2:
            break
        theta, g, fell = theta + step, following, True
    return theta, g, fell


def _free(theta: np.ndarray, g: np.ndarray, bounds: Any) -> np.ndarray:
    """Indices of parameters that are not held at a bound."""
    if bounds is None:
        return np.arange(theta.size)
    lower, upper = np.array(bounds, dtype=float).T
    held = ((theta <= lower) & (g > 0)) | ((theta >= upper) & (g < 0))
    return np.flatnonzero(~held)


def _hessian(gradient: Gradient, theta: np.ndarray) -> np.ndarray:
    """Symmetrised fourth-order central differences of the gradient, (P, P).

    Steps are 0.02 of a parameter's own conditional standard error, 1 / sqrt(H_jj / 2), as a first rough pass finds it:
    parameters differ by five orders of magnitude, and the noise in a gradient is about 1e-11.
    """
    steps = 1e-4 * np.maximum(np.abs(theta), 1e-2)
    for fraction in (0.02, None):
        H = np.empty((theta.size, theta.size))
        for j, step in enumerate(steps):
            e = np.zeros(theta.size)
            e[j] = step
            near = gradient(theta + e) - gradient(theta - e)
            far = gradient(theta + 2 * e) - gradient(theta - 2 * e) if fraction is None else 2 * near
            H[:, j] = (8 * near - far) / (12 * step)
        if fraction is not None:
            steps = fraction / np.sqrt(np.abs(np.diag(H)) / 2)
    return (H + H.T) / 2


def _gradient_of(function: Callable) -> Gradient:
    return lambda theta: np.asarray(function(theta)[1], dtype=float).reshape(-1)


def _unbounded(k2: int, demographics: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Infinite bounds, since routines that PyBLP does not know get its default bounds."""
    options = {"sigma_bounds": (np.full((k2, k2), -np.inf), np.full((k2, k2), np.inf))}
    if demographics:
        options["pi_bounds"] = (np.full((k2, demographics), -np.inf), np.full((k2, demographics), np.inf))
    return options


# --- what is stored -------------------------------------------------------------------------------------------------


def take(results: pyblp.ProblemResults, *names: str) -> Content:
    """Attributes of results, by name."""
    return {name: getattr(results, name) for name in names}


def _errors(results: pyblp.ProblemResults) -> Content:
    return take(results, "sigma_se", "sigma_squared_se", "pi_se", "beta_se")


def _estimates(results: pyblp.ProblemResults) -> Content:
    return take(
        results,
        "objective",
        "theta",
        "theta_labels",
        "sigma",
        "sigma_squared",
        "pi",
        "beta",
        "gradient",
        "projected_gradient",
        "projected_gradient_norm",
        "hessian",
        "reduced_hessian",
        "reduced_hessian_eigenvalues",
        "parameter_covariances",
    ) | _errors(results)


def _evaluation(results: pyblp.ProblemResults) -> Content:
    rows = ("delta", "xi", "xi_fe", "xi_by_theta_jacobian")
    return (
        take(results, "moments", "moments_jacobian", "parameter_sensitivity", "W", "updated_W", "moments_covariances")
        | {name: getattr(results, name)[:FIRST_ROWS] for name in rows}
        | counters(results)
    )


def counters(results: pyblp.ProblemResults) -> Content:
    """Convergence and numbers of evaluations."""
    return take(
        results, "converged", "optimization_iterations", "objective_evaluations", "cumulative_objective_evaluations"
    ) | {
        "fp_iterations_total": results.cumulative_fp_iterations.sum(),
        "contraction_evaluations_total": results.cumulative_contraction_evaluations.sum(),
        "fp_failures_total": results.cumulative_objective_evaluations * results.problem.T
        - results.cumulative_fp_converged.sum(),
    }


def _linear(results: pyblp.ProblemResults) -> Content:
    content = take(
        results,
        "objective",
        "beta",
        "beta_se",
        "moments",
        "moments_jacobian",
        "parameter_covariances",
        "W",
        "updated_W",
    )
    return content | {
        "xi": results.xi[:FIRST_ROWS],
        "delta": results.delta[:FIRST_ROWS],
        "hansen": results.run_hansen_test(),
    }


def _post_estimation(results: pyblp.ProblemResults) -> Content:
    """Elasticities and diversion ratios in the first market, and mean own-price elasticities in all (T, 1)."""
    content: Content = {
        "market": MARKET,
        "own_elasticity_means": results.extract_diagonal_means(results.compute_elasticities()),
        "own_elasticities": results.extract_diagonals(results.compute_elasticities())[:FIRST_ROWS],
        "probabilities": results.compute_probabilities(market_id=MARKET),
    }
    for label, name in (("prices", "prices"), ("sugar", "sugar"), ("delta", None)):
        content[f"elasticities_{label}"] = results.compute_elasticities(name, market_id=MARKET)
        content[f"diversion_ratios_{label}"] = results.compute_diversion_ratios(name, market_id=MARKET)
    return content


def _tests(results: pyblp.ProblemResults) -> Content:
    """Test statistics; the Wald tests' nulls are that sigma on the constant is 0, and that all four sigmas are."""
    restriction = np.eye(4, results.parameters.size)
    return {
        "hansen": results.run_hansen_test(),
        "lm": results.run_lm_test(),
        "wald_one": results.run_wald_test(results.parameters[:1], restriction[:1]),
        "wald_four": results.run_wald_test(results.parameters[:4], restriction),
    }


def write(name: str, about: str, content: Content) -> None:
    """Write a section's file."""
    versions = {"pyblp": pyblp.__version__, "numpy": np.__version__, "scipy": scipy.__version__}
    document = {"section": name, "versions": versions, "about": " ".join(about.split())} | _plain(content)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in document.items())
    (HERE / f"{name}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Arrays and NumPy scalars as lists and numbers, NaN as None."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case float():
            return None if np.isnan(value) else value
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
