"""Print the table of estimates in `docs/parity.md`: ``python docs/site/parity_table.py``.

PyBLP's are stored in ``tests/parity/reference/nevo_unbounded.json``, blpjax's are estimated now.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

import blpjax

STORED = Path(__file__).parents[2] / "tests" / "parity" / "reference" / "nevo_unbounded.json"
SIGMA = np.diag([0.3302, 2.4526, 0.0163, 0.2441])
PI = [[5.4819, 0, 0.2037, 0], [15.8935, -1.2, 0, 2.6342], [-0.2506, 0, 0.0511, 0], [1.2650, 0, -0.8091, 0]]


def table() -> str:
    """Estimates of Nevo's cereals without bounds, one step, as Markdown."""
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    products, agents = blpjax.data.load_nevo()
    formulas = (
        blpjax.Formulation("0 + prices", absorb="C(product_ids)"),
        blpjax.Formulation("1 + prices + sugar + mushy"),
    )
    problem = blpjax.Problem(
        formulas, products, blpjax.Formulation("0 + income + income_squared + age + child"), agents
    )
    free = np.full((4, 4), np.inf)
    results = problem.solve(SIGMA, PI, sigma_bounds=(-free, free), method="1s")
    known = {
        name: np.array(stored[name], dtype=float) for name in ("sigma", "pi", "beta", "sigma_se", "pi_se", "beta_se")
    }
    lines = [f"| | PyBLP {stored['versions']['pyblp']} | blpjax | its standard error |", "|---|---|---|---|"]
    for block, rows, columns in (
        ("sigma", results.sigma_labels, results.sigma_labels),
        ("pi", results.sigma_labels, results.pi_labels),
        ("beta", results.beta_labels, [""]),
    ):
        ours, errors = getattr(results, block), getattr(results, f"{block}_se")
        theirs = known[block].reshape(ours.shape)
        for k, m in np.argwhere(ours != 0):
            label = rows[k] + (f" x {columns[m]}" if columns[m] else "")
            lines.append(f"| {block} {label} | {theirs[k, m]:.6g} | {ours[k, m]:.6g} | {errors[k, m]:.3g} |")
    lines.append(f"| objective | {float(np.ravel(stored['objective'])[0]):.10g} | {float(results.objective):.10g} | |")
    return pd.Series(lines).str.cat(sep="\n")


if __name__ == "__main__":
    blpjax.options.verbose = False
    print(table())
