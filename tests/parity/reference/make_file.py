"""Make a file of results as version 0.1.0 of blpjax wrote it, and numbers and texts that it has to give again.

`results-0.1.0.blpjax` and `results-0.1.0.json` were made by the code of commit a9c0991, before modules moved to
folders, which `git worktree add ../old a9c0991` brings back::

    PYTHONPATH=../old python tests/parity/reference/make_file.py

Later versions have to read the file, so it is never made again; a change of the format gets files of its own.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

import blpjax

HERE = Path(__file__).parent
NAME = "results-0.1.0"
F = blpjax.Formulation

#: Starting values and options of the estimation.
ARGUMENTS: dict[str, Any] = {
    "sigma": [[0.8]],
    "pi": [[0.4]],
    "rho": 0.2,
    "beta": [None, -1.8, None],
    "W_type": "clustered",
    "se_type": "clustered",
    "costs_bounds": (0.001, None),
    "optimization": blpjax.Optimization("trust-region", {"gtol": 1e-9}),
    "check_optimality": "both",
}
#: Arrays with a row by product are stored for the first products only.
FIRST_ROWS = 8
NUMBERS = (
    "objective theta parameters parameter_covariances sigma pi rho beta gamma sigma_se pi_se rho_se beta_se gamma_se "
    "gradient hessian moments moments_jacobian W updated_W"
).split()
ROWS = "delta xi omega tilde_costs xi_by_theta_jacobian omega_by_theta_jacobian".split()
OUTPUTS = "elasticities diversion_ratios costs markups profits consumer_surpluses".split()


def build() -> blpjax.Problem:
    """Demand with nests, a random coefficient and a demographic variable, and supply with costs in logarithms."""
    rng = np.random.default_rng(0)
    T, J, I = 20, 6, 8  # noqa: E741
    ids = blpjax.build_id_data(T, J, F=3)
    market_ids = np.array([f"m{t:02d}" for t in ids["market_ids"].ravel()], dtype=object)
    people = np.repeat(np.unique(market_ids), I)
    products = {
        "market_ids": market_ids,
        "firm_ids": ids["firm_ids"].ravel(),
        "nesting_ids": np.array(list("aab" * (T * J // 3)), dtype=object),
        "clustering_ids": np.repeat(np.arange(T), J),
        "product_ids": np.tile([f"p{j}" for j in range(J)], T).astype(object),
    }
    agents = {
        "market_ids": people,
        "weights": np.full(people.size, 1 / I),
        "nodes": rng.normal(size=(people.size, 1)),
        "income": rng.normal(size=people.size),
    }
    simulation = blpjax.Simulation(
        (F("1 + prices + x"), F("0 + x"), F("1 + x + z")),
        products,
        beta=[0.5, -2.0, 1.0],
        sigma=[[1.0]],
        pi=[[0.5]],
        gamma=[0.2, 0.2, 0.3],
        rho=0.3,
        agent_formulation=F("0 + income"),
        agent_data=agents,
        xi_variance=0.05,
        omega_variance=0.02,
        correlation=0.3,
        costs_type="log",
        seed=1,
    )
    solved = simulation.replace_endogenous()
    data = blpjax.data_to_dict(solved.product_data)
    rivals = blpjax.build_differentiation_instruments(F("0 + x + z"), data, version="quadratic")
    nests = blpjax.build_blp_instruments(F("1 + x"), data | {"firm_ids": data["nesting_ids"]})[:, :2]
    data |= {"demand_instruments": np.c_[rivals, nests, data["z"]], "supply_instruments": rivals}
    return solved.to_problem(product_data=data)


def describe(results: blpjax.ProblemResults) -> dict[str, Any]:
    """Numbers and texts of results. Outputs are those of the first market but for surpluses, of all markets."""
    market = results.problem.unique_market_ids[0]
    numbers = {name: np.asarray(getattr(results, name)).tolist() for name in NUMBERS}
    rows = {name: np.asarray(getattr(results, name))[:FIRST_ROWS].tolist() for name in ROWS}
    outputs = {}
    for name in OUTPUTS:
        of = None if name == "consumer_surpluses" else market
        outputs[name] = np.asarray(getattr(results, f"compute_{name}")(market_id=of)).tolist()
    first = results.last_results
    assert first is not None
    return {
        "numbers": numbers,
        "rows": rows,
        "outputs": outputs,
        "first_step": {name: np.asarray(getattr(first, name)).tolist() for name in ("objective", "parameters")},
        "labels": {"theta": [str(label) for label in results.theta_labels], "beta": list(results.beta_labels)},
        "texts": {"results": str(results), "problem": str(results.problem)},
    }


def main() -> None:
    """Write both files."""
    blpjax.options.verbose = False
    results = build().solve(**ARGUMENTS)
    assert results.converged and results.cumulative_converged, str(results)
    results.save(HERE / f"{NAME}.blpjax")
    lines = [f"{json.dumps(name)}: {json.dumps(content)}" for name, content in describe(results).items()]
    (HERE / f"{NAME}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
