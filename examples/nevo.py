"""Estimate demand for Nevo's fake cereals and look at own-price elasticities.

The data and the starting values are those of A. Nevo (2000), "A practitioner's guide to estimation of
random-coefficients logit models of demand", Journal of Economics & Management Strategy 9 (4). Run by `make demo`.
"""

from pathlib import Path

import matplotlib
import numpy as np

import blpjax

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

FIGURE = Path(__file__).parents[1] / "build" / "nevo_elasticities.png"

INITIAL_SIGMA = np.diag([0.3302, 2.4526, 0.0163, 0.2441])
INITIAL_PI = np.array(
    [
        # income  income^2  age      child
        [5.4819, 0, 0.2037, 0],  # constant
        [15.8935, -1.2000, 0, 2.6342],  # prices
        [-0.2506, 0, 0.0511, 0],  # sugar
        [1.2650, 0, -0.8091, 0],  # mushy
    ]
)


def main() -> None:
    """Estimate, which prints the problem, progress and the results; print the elasticities, and draw them."""
    products, agents = blpjax.data.load_nevo()
    problem = blpjax.Problem(
        (
            blpjax.Formulation("0 + prices", absorb="C(product_ids)"),
            blpjax.Formulation("1 + prices + sugar + mushy"),
        ),
        products,
        blpjax.Formulation("0 + income + income_squared + age + child"),
        agents,
    )

    results = problem.solve(INITIAL_SIGMA, INITIAL_PI, method="1s")

    own = results.extract_diagonals(results.compute_elasticities()).ravel()
    brands = np.asarray(products["product_ids"])
    by_brand = {str(brand): own[brands == brand] for brand in np.unique(brands)}
    by_brand = dict(sorted(by_brand.items(), key=lambda item: np.median(item[1])))
    print_elasticities(own, by_brand)
    draw_elasticities(own, by_brand)
    print(f"\nWrote {FIGURE}")


def print_elasticities(own: np.ndarray, by_brand: dict[str, np.ndarray]) -> None:
    """Print the distribution over markets of own-price elasticities, brand by brand, most elastic first."""
    print("\nOwn-price elasticities over markets:")
    print(f"{'brand':10s} {'median':>8s} {'lowest':>8s} {'highest':>8s}")
    for brand, values in [*by_brand.items(), ("all", own)]:
        print(f"{brand:10s} {np.median(values):8.3f} {values.min():8.3f} {values.max():8.3f}")


def draw_elasticities(own: np.ndarray, by_brand: dict[str, np.ndarray]) -> None:
    """Save a histogram of own-price elasticities, shaded by brand, with each brand's range beside it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 1.0, len(by_brand)))

    left.hist(list(by_brand.values()), bins=40, stacked=True, color=colors)
    left.axvline(np.median(own), color="black", linewidth=1, label=f"median {np.median(own):.2f}")
    left.set(xlabel="own-price elasticity", ylabel="cereals in markets", title="All brands, most elastic darkest")
    left.legend(frameon=False)

    boxes = right.boxplot(list(by_brand.values()), orientation="horizontal", widths=0.6, patch_artist=True, sym=".")
    for box, color in zip(boxes["boxes"], colors, strict=True):
        box.set_facecolor(color)
    right.set_yticks(range(1, len(by_brand) + 1), labels=list(by_brand), fontsize=8)
    right.set(xlabel="own-price elasticity", title="Brand by brand, over markets")

    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
