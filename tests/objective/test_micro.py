"""Micro moments in estimation: next to PyBLP, differences, and formulas; and what cannot be used."""

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyblp
import pytest

import blpjax
from blpjax.exceptions import ConvergenceWarning, DataError, IdentificationError, IdentificationWarning
from tests.support.designs import mostly_slow
from tests.support.problems import PI, SIGMA, build, evaluate
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, FIXED_PARAMETERS, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")


@cache
def problem(library: Any = blpjax) -> Any:
    return build(library)


def buyers(library: Any = blpjax, **kwargs: Any) -> Any:
    return library.MicroDataset("buyers", 300, lambda t, p, a: np.ones((a.size, p.size)), **kwargs)


def part(compute: Any, name: str = "part", dataset: Any = None, library: Any = blpjax) -> Any:
    return library.MicroPart(name, dataset or buyers(library), compute)


def income_x(t: Any, products: Any, agents: Any) -> np.ndarray:
    return np.outer(agents.demographics[:, 0], products.X2[:, 2])


@cache
def known_moments(library: Any, gradient: bool) -> tuple[Any, ...]:
    """Made once: programs with other functions are others, also where these say the same."""
    markets = sorted(problem(library).unique_market_ids)[2:7]
    everybody = library.MicroDataset(
        "everybody",
        500,
        lambda t, p, a: np.outer(1 + a.demographics[:, 0] ** 2, np.ones(1 + p.size)),
        market_ids=markets,
    )
    top = part(lambda t, p, a: np.outer(a.demographics[:, 0], np.r_[0, np.ones(p.size)]), "top", everybody, library)
    bottom = part(lambda t, p, a: np.outer(a.nodes[:, 0] ** 2, np.r_[0.5, np.ones(p.size)]), "low", everybody, library)
    return (
        library.MicroMoment("mean", 0.1, part(income_x, "income x", None, library)),
        library.MicroMoment(
            "ratio",
            0.4,
            [top, bottom],
            lambda v: v[0] / v[1],
            (lambda v: [1 / v[1], -v[0] / v[1] ** 2]) if gradient or library is pyblp else None,
        ),
    )


def moments(library: Any = blpjax, gradient: bool = True) -> list[Any]:
    """A mean, and a ratio of two parts of a survey of some markets."""
    return list(known_moments(library, gradient))


def beside_ratio(mean: Any, name: str = "m", value: float = 0.1) -> list[Any]:
    """The mean of a part in place of the first of `moments`, for which programs are the same."""
    return [blpjax.MicroMoment(name, value, mean), moments()[1]]


def solve(library: Any = blpjax, **options: Any) -> Any:
    """Results at the starting values."""
    chosen = {
        "method": "1s",
        "optimization": library.Optimization("return"),
        "iteration": library.Iteration("squarem", {"atol": 1e-14}),
        "check_optimality": "gradient",
        "micro_moments": moments(library),
    } | options
    return problem(library).solve(SIGMA, PI, **chosen)


NAMES = (
    "micro", "micro_values", "micro_covariances", "micro_by_theta_jacobian", "objective", "gradient", "moments", "W",
    "updated_W", "moments_jacobian", "moments_covariances", "parameter_covariances", "beta", "sigma_se", "beta_se",
)  # fmt: skip


@pytest.mark.parametrize("kind", mostly_slow(["plain", "sample", "unscaled", "clustered"], ["plain", "clustered"]))
def test_pyblp_has_the_same_moments(kind: str) -> None:
    options: dict[str, Any] = {
        "sample": {"micro_sample_covariances": [[2e-3, 5e-4], [5e-4, 1e-3]]},
        "unscaled": {"scale_objective": False},
        "clustered": {"W_type": "clustered", "se_type": "clustered"},
    }.get(kind, {})
    ours, theirs = (solve(library, **options) for library in (blpjax, pyblp))
    for name in NAMES:
        FIXED_PARAMETERS.check(getattr(ours, name), getattr(theirs, name), name)
    assert set(ours.to_dict()) >= {"micro", "micro_values", "micro_covariances", "micro_by_theta_jacobian"}
    assert ours.last_results.step == 0 and not ours.last_results.W[-2:].any()


@pytest.mark.slow
def test_estimates_match_moments_that_weigh_enough() -> None:
    """With a survey that is much larger than the sample of products, and values of the model at some parameters."""
    elsewhere = evaluate(problem(), blpjax, iteration=None, micro_moments=moments()).micro_values[:, 0] * [1.02, 1.01]
    known = [
        blpjax.MicroMoment(m.name, value, m.parts if m.compute_value else m.parts[0], m.compute_value)
        for m, value in zip(moments(), elsewhere, strict=True)
    ]
    found = problem().solve(SIGMA, PI, micro_moments=known, micro_sample_covariances=1e-10 * np.eye(2), method="1s")
    assert found.converged and np.abs(found.micro).max() < 1e-4 < np.abs(found.last_results.micro).max()


def test_no_moments_have_empty_attributes() -> None:
    found = solve(micro_moments=())
    P = len(found.theta)
    assert found.micro.shape == found.micro_values.shape == (0, 1)
    assert found.micro_covariances.shape == (0, 0) and found.micro_by_theta_jacobian.shape == (0, P)


def test_gradients_are_found_where_they_are_not_given() -> None:
    found, given = solve(micro_moments=moments(gradient=False)), solve()
    for name in NAMES:
        LINEAR_ALGEBRA.check(getattr(found, name), getattr(given, name), name)


@pytest.mark.slow
def test_functions_that_jax_cannot_trace_are_called() -> None:
    """They need gradients, and give the same numbers, also in Hessians."""
    called = moments()
    called[1] = blpjax.MicroMoment(
        "ratio",
        0.4,
        called[1].parts,
        lambda v: float(v[0] / v[1]),
        lambda v: np.array([float(1 / v[1]), float(-v[0] / v[1] ** 2)]),
    )
    ours, traced = (solve(micro_moments=ms, check_optimality="both") for ms in (called, moments()))
    for name in (*NAMES, "hessian"):
        CENTRAL_DIFFERENCE.check(getattr(ours, name), getattr(traced, name), name)
    called[1] = blpjax.MicroMoment("ratio", 0.4, called[1].parts, lambda v: float(v[0] / v[1]))
    with pytest.raises(ValueError, match="The micro moment 'ratio' needs compute_gradient, because its compute_value"):
        solve(micro_moments=called)


@pytest.mark.slow
def test_gradient_and_hessian_are_differences_with_weights_across_blocks() -> None:
    """PyBLP's gradient is another one there, because linear parameters are concentrated out by a part of W alone."""
    first = solve()
    W = np.array(first.updated_W)
    rng = np.random.default_rng(0)
    scale = np.sqrt(np.diag(W))
    A = np.eye(len(W)) + 0.2 * rng.normal(size=W.shape)
    W = scale[:, None] * (A @ A.T) * scale
    found = solve(W=W, check_optimality="both", iteration=None)
    assert found.last_results is None
    results = []
    for p in range(len(found.theta)):
        for sign in (1, -1):
            theta = found.theta.copy()
            theta[p] += sign * 1e-5
            sigma, pi = SIGMA.copy(), PI.copy()
            sigma[tuple(np.array(found.layout.sigma).T)] = theta[: len(found.layout.sigma)]
            pi[tuple(np.array(found.layout.pi).T)] = theta[len(found.layout.sigma) :]
            moved = problem().solve(
                sigma, pi, W=W, method="1s", optimization=blpjax.Optimization("return"), check_optimality="gradient",
                micro_moments=moments(), delta=found.delta,
            )  # fmt: skip
            results.append(moved)
    values = np.array([float(one.objective) for one in results]).reshape(-1, 2)
    CENTRAL_DIFFERENCE.check(found.gradient[:, 0], (values[:, 0] - values[:, 1]) / 2e-5)
    gradients = np.array([one.gradient[:, 0] for one in results]).reshape(-1, 2, len(found.theta))
    CENTRAL_DIFFERENCE.check(found.hessian, (gradients[:, 0] - gradients[:, 1]) / 2e-5)
    by_theta = np.array([one.micro[:, 0] for one in results]).reshape(len(found.theta), 2, -1)
    CENTRAL_DIFFERENCE.check(found.micro_by_theta_jacobian, ((by_theta[:, 0] - by_theta[:, 1]) / 2e-5).T)


@pytest.mark.slow
def test_functions_are_called_once_for_each_market() -> None:
    """However often the objective is evaluated; and nothing of the user's is changed."""
    calls: list[Any] = []

    def weights(t: Any, products: Any, agents: Any) -> np.ndarray:
        calls.append(t)
        assert (len(products), len(agents)) == (products.size, agents.size)
        products.prices[:] = agents.weights[:] = 0  # of copies
        return np.ones((agents.size, products.size))

    before = problem().products.prices.copy(), problem().agents.weights.copy()
    dataset = blpjax.MicroDataset("counted", 10, weights)
    found = solve(micro_moments=beside_ratio(part(income_x, dataset=dataset)), optimization=None)
    assert found.objective_evaluations > 1 and calls == sorted(problem().unique_market_ids)
    assert (problem().products.prices == before[0]).all() and (problem().agents.weights == before[1]).all()


def test_tables_are_printed_before_and_after() -> None:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blpjax.options, "verbose", True)
        patch.setattr(blpjax.options, "verbose_output", lines.append)
        found = solve()
    text = "\n".join(lines)
    assert text.count("\nMicro Moments:\n") == 1 and text.count("Estimated Micro Moments:\n") == 2
    table = str(found).split("Estimated Micro Moments:\n")[1].splitlines()
    assert table[1].split() == [
        "Observed",
        "Estimated",
        "Difference",
        "Moment",
        "Part",
        "Dataset",
        "Observations",
        "Markets",
    ]
    assert table[3].split()[3:] == ["mean", "income", "x", "buyers", "300", "All"]
    assert table[4].split()[3:] == ["ratio", "top", "everybody", "500", "5"]
    assert table[5].split() == ["low", "everybody", "500", "5"]


def test_results_are_saved_and_pickled(tmp_path: Path) -> None:
    found = solve()
    found.save(tmp_path / "results.zip")
    for again in (blpjax.load(tmp_path / "results.zip"), pickle.loads(pickle.dumps(found))):
        for name in ("micro", "micro_values", "micro_covariances", "micro_by_theta_jacobian"):
            np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
        assert str(again) == str(found)


@pytest.mark.slow
def test_custom_routines_see_micro_moments() -> None:
    seen: list[Any] = []

    def routine(theta: Any, bounds: Any, objective: Any, callback: Any, **options: Any) -> Any:
        seen.append(objective(theta)[2])
        return theta, True

    optimization = blpjax.Optimization(routine, universal_display=False)
    with pytest.warns(ConvergenceWarning, match="not an optimum"):
        found = solve(optimization=optimization)
    DELTA.check(seen[-1].micro, found.micro)
    DELTA.check(seen[-1].micro_values, found.micro_values)
    DELTA.check(seen[-1].micro_by_theta_jacobian, found.micro_by_theta_jacobian)


@pytest.mark.slow
def test_starts_see_micro_moments() -> None:
    """They are tried at the same time, with a W that weighs micro moments."""
    W = solve().updated_W
    plain = problem().solve(SIGMA, PI, method="1s", W=W, micro_moments=moments())
    tried = problem().solve(SIGMA, PI, method="1s", W=W, micro_moments=moments(), starts=3)
    assert float(tried.objective) <= float(plain.objective) * (1 + 1e-6)
    assert len(tried.starts) == 3 and tried.converged


def test_differences_see_micro_moments() -> None:
    exact = solve()
    differences = solve(finite_differences=True)
    np.testing.assert_allclose(differences.gradient, exact.gradient, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(differences.micro_by_theta_jacobian, exact.micro_by_theta_jacobian, rtol=1e-4, atol=1e-5)


# what is wrong

WRONG: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: buyers(market_ids=["nowhere"]),
        ValueError,
        "The micro dataset 'buyers' is invalid: product_data have no markets with the IDs 'nowhere'",
    ),
    (
        lambda: buyers(eliminated_product_ids_index=4),
        DataError,
        "those of first choices alone, for which eliminated_product_ids_index has no meaning",
    ),
    (
        lambda: blpjax.MicroDataset("d", 1, lambda t, p, a: np.ones(a.size)),
        DataError,
        r"The weights for micro dataset 'd' in market .* must have one of the shapes .* not \(",
    ),
    (
        lambda: blpjax.MicroDataset("d", 1, lambda t, p, a: -np.ones((a.size, p.size))),
        DataError,
        "The weights for micro dataset 'd' in market .* must not be negative",
    ),
    (
        lambda: blpjax.MicroDataset("d", 1, lambda t, p, a: np.full((a.size, p.size), np.nan)),
        DataError,
        "The weights for micro dataset 'd' in market .* must be finite",
    ),
    (
        lambda: blpjax.MicroDataset("d", 1, lambda t, p, a: np.zeros((a.size, p.size))),
        DataError,
        "The weights for micro dataset 'd' in market .* are all zero. Use market_ids",
    ),
    (
        lambda: blpjax.MicroDataset("d", 1, lambda t, p, a: a.wealth),
        RuntimeError,
        "Failed to compute weights for micro dataset 'd' in market",
    ),
    (
        lambda: blpjax.MicroDataset(
            "d", 1, lambda t, p, a: np.ones((a.size, p.size, p.size)), eliminated_product_ids_index=7
        ),
        ValueError,
        "The micro dataset 'd' is invalid: eliminated_product_ids_index is 7, but product_data have",
    ),
]


@pytest.mark.parametrize(("dataset", "error", "message"), WRONG)
def test_datasets_that_cannot_be_used_are_named(dataset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(micro_moments=[blpjax.MicroMoment("m", 0.1, part(income_x, dataset=dataset()))])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            lambda t, p, a: np.ones((a.size, 1)),
            DataError,
            r"values for micro part 'part' .* must have the shape \(",
        ),
        (
            lambda t, p, a: np.full((a.size, p.size), np.inf),
            DataError,
            "must be finite where the dataset's",
        ),
        (
            lambda t, p, a: p.weight,
            RuntimeError,
            "Failed to compute values for micro part 'part' of micro",
        ),
    ],
)
def test_parts_that_cannot_be_used_are_named(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(micro_moments=[blpjax.MicroMoment("m", 0.1, part(values))])


@pytest.mark.parametrize(
    ("weights", "values", "message"),
    [
        (lambda own: -own, None, "weights for micro dataset 'one' in market {} must not be negative"),
        (lambda own: 0 * own, None, "weights for micro dataset 'one' in market {} are all zero"),
        (lambda own: own / 0, None, "weights for micro dataset 'one' in market {} must be finite"),
        (lambda own: own[:, :1], None, "weights for micro dataset 'one' in market {} must have one of the shapes"),
        (None, lambda own: own[1:], "values for micro part 'p' of micro dataset 'one' in market {} must have the"),
        (None, lambda own: own / 0, "values for micro part 'p' of micro dataset 'one' in market {} must be finite"),
    ],
)
def test_the_one_market_is_named_where_something_is_wrong(weights: Any, values: Any, message: str) -> None:
    bad = sorted(problem().unique_market_ids)[3]

    def compute(wrong: Any) -> Any:
        def function(t: Any, products: Any, agents: Any) -> np.ndarray:
            own = np.ones((agents.size, products.size))
            with np.errstate(all="ignore"):
                return own if wrong is None or t != bad else wrong(own)

        return function

    one = part(compute(values), "p", blpjax.MicroDataset("one", 10, compute(weights)))
    with pytest.raises(DataError, match=message.format(repr(str(bad)))):
        solve(micro_moments=[blpjax.MicroMoment("m", 0.1, one)])


def test_values_are_not_needed_where_weights_are_zero() -> None:
    first = blpjax.MicroDataset("first", 10, lambda t, p, a: np.outer(np.ones(a.size), np.arange(p.size) == 0))

    def values(missing: float) -> Any:
        def compute(t: Any, products: Any, agents: Any) -> np.ndarray:
            return np.where(np.arange(products.size) == 0, income_x(t, products, agents), missing)

        return [blpjax.MicroMoment("m", 0.1, part(compute, dataset=first))]

    results = solve()
    found = [results.compute_micro_values(values(missing))[0] for missing in (0.0, np.nan)]
    assert found[0] == found[1]


def function_of(value: Any, gradient: Any = None) -> list[Any]:
    return [blpjax.MicroMoment("f", 0.1, [part(income_x)], value, gradient)]


@pytest.mark.parametrize(
    ("value", "gradient", "error", "message"),
    [
        (
            lambda v: v[0] ** 2,
            lambda v: 20 * v,
            ValueError,
            "compute_gradient of the micro moment 'f' is not",
        ),
        (
            lambda v: v[0] ** 2,
            lambda v: [1, 2],
            ValueError,
            "of the micro moment 'f' must return 1 numbers",
        ),
        (lambda v: np.r_[v, v], lambda v: v, TypeError, "compute_value of the micro moment 'f' must return a number"),
        (lambda v: v[1], lambda v: v, RuntimeError, "Failed to compute the value of micro moment 'f'"),
        (lambda v: v[0], lambda v: v[1], RuntimeError, "Failed to compute the gradient of micro moment 'f'"),
    ],
)
def test_functions_that_cannot_be_used_are_named(value: Any, gradient: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        solve(micro_moments=function_of(value, gradient))


@pytest.mark.slow
def test_missing_values_are_a_failure_and_never_a_fit() -> None:
    """PyBLP takes a moment that is not a number at the start for one that is matched."""
    with pytest.warns(Warning):
        found = solve(micro_moments=function_of(lambda v: jnp.log(v[0] - 1e6)))
    assert np.isnan(found.objective) and not found.converged
    assert "micro moments 'f' are not finite" in found.message


@pytest.mark.slow
def test_moments_without_variance_are_refused() -> None:
    constant = part(lambda t, p, a: np.full((a.size, p.size), 3.0))
    with pytest.raises(IdentificationError, match="the micro moments 'constant' have no variance"):
        solve(micro_moments=beside_ratio(constant, "constant", 3.0))


def test_collinear_values_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blpjax.options, "detect_micro_collinearity", True)
    dataset = buyers()
    parts = [part(lambda t, p, a, k=k: k + k**2 * income_x(t, p, a), f"p{k}", dataset) for k in (1, 2, 3)]
    ones = [blpjax.MicroMoment(f"m{p.name}", 0.1, p) for p in parts]
    with pytest.warns(IdentificationWarning, match="values of the micro parts 'p3' are linear combinations"):
        with pytest.raises(ValueError, match="initial_update=False"):
            solve(micro_moments=ones, initial_update=False)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"initial_update": False}, ValueError, "initial_update=False needs a weighting matrix W"),
        ({"micro_moments": [], "micro_sample_covariances": np.eye(2)}, ValueError, "need micro_moments"),
        (
            {"micro_sample_covariances": np.eye(3)},
            ValueError,
            r"must have the shape \(2, 2\), for 2 micro",
        ),
        ({"micro_sample_covariances": [[1, 2], [2, 1]]}, ValueError, "must be positive semidefinite"),
        ({"micro_sample_covariances": [[1, 0], [1, 1]]}, ValueError, "must be symmetric"),
        ({"micro_sample_covariances": [[1, 0], [0, np.nan]]}, ValueError, "must be finite"),
        ({"micro_moment_covariances": np.eye(2)}, TypeError, "micro_moment_covariances: use micro_sample_covariances"),
        ({"extra_micro_moments": []}, TypeError, "extra_micro_moments: use micro_moments"),
        ({"micro_moments": "m"}, TypeError, "micro_moments must be a list of MicroMoment instances"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(**options)


def test_singular_sample_covariances_warn() -> None:
    with pytest.warns(
        IdentificationWarning,
        match="micro_sample_covariances are singular: .* Collinear are 'ratio', 'mean'|'mean', 'ratio'",
    ):
        with pytest.raises(ValueError, match="initial_update=False"):
            solve(micro_sample_covariances=np.ones((2, 2)), initial_update=False)
