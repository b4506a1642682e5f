"""Solve one problem with its markets spread over devices, and write what was found to a NumPy file.

A program of its own, because JAX's devices and processes are decided before it starts:

    python tests/support/sharded_problem.py OUTPUT                    solves it on one device, too
    python tests/support/sharded_problem.py OUTPUT conduct            likewise where firms set quantities
    python tests/support/sharded_problem.py OUTPUT ADDRESS COUNT RANK is one of COUNT processes
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import blpjax
import blpjax.economy.buckets
from tests.support import joint

#: Attributes of results that do not depend on where markets are.
ATTRIBUTES = (
    "objective",
    "parameters",
    "parameter_covariances",
    "sigma_se",
    "pi_se",
    "beta_se",
    "gamma_se",
    "hessian",
    "moments_jacobian",
    "updated_W",
    "delta",
    "xi",
    "omega",
    "tilde_costs",
)


#: Those of micro moments.
MICRO = ("micro", "micro_covariances", "micro_by_theta_jacobian", "gradient")

STARTS: dict[str, Any] = {"sigma": np.diag([0.4, 0.6]), "pi": [[0.3], [0.0]], "beta": [None, -2.0, None, None]}


#: What depends on how firms compete, where they do not set prices.
CONDUCT = ("tilde_costs", "gradient", "gamma_se", "kappa_se", "prices")


def build(**options: Any) -> tuple[Any, Any, Any]:
    """Return a problem with unequal markets in two buckets, four and eight, and its tables."""
    blpjax.economy.buckets.WORTHWHILE_PAIRS = 0
    joint.PRODUCTS, joint.AGENTS = (8, 7, 3, 8, 8, 3), (12, 11, 12, 12, 12, 12)
    products, agents = joint.tables(markets=12)
    return joint.Model(options=options).build(blpjax, products, agents), products, agents


def solve(problem: Any, products: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Estimates and what follows from them."""
    results = problem.solve(**STARTS)
    found = {name: getattr(results, name) for name in ATTRIBUTES}
    merged = products["firm_ids"].replace(2, 1)
    found |= {
        "elasticities": results.compute_elasticities(),
        "elasticities_of_one_market": results.compute_elasticities(market_id="m002"),
        "prices": results.compute_prices(merged),
        "surpluses": results.compute_consumer_surpluses(),
    }
    some = blpjax.MicroDataset("some", 100, lambda t, p, a: np.ones((a.size, p.size, 1 + p.size)), market_ids=["m002"])
    parts = [
        blpjax.MicroPart("x", some, lambda t, p, a: np.tile(p.X2[:, :1], (a.size, 1, 1 + p.size))),
        blpjax.MicroPart(
            "same", some, lambda t, p, a: np.tile(p.firm_ids == np.c_[p.firm_ids.T, [[-1]]], (a.size, 1, 1))
        ),
    ]
    moments = [blpjax.MicroMoment("m", 0.2, parts, lambda v: v[0] * v[1], lambda v: v[::-1])]
    options = {"optimization": blpjax.Optimization("return"), "check_optimality": "gradient", "micro_moments": moments}
    micro = problem.solve(**STARTS, method="1s", **options)
    found |= {name: getattr(micro, name) for name in MICRO} | {"micro_again": micro.compute_micro_values(moments)}
    return results, found


def solve_with_conduct(problem: Any) -> dict[str, np.ndarray]:
    """What depends on conduct, at the starting values."""
    options = {"optimization": blpjax.Optimization("return"), "check_optimality": "gradient"}
    results = problem.solve(**STARTS, kappa=0.2, method="1s", **options)
    found = {name: getattr(results, name) for name in CONDUCT[:-1]}
    return found | {"prices": results.compute_prices(costs=results.compute_costs() + 0.1)}


def compete_on_devices(output: str) -> None:
    """One process, and firms that set quantities."""
    problem, _, _ = build(conduct=blpjax.Cournot(weights=blpjax.Parameter("weight")))
    one, several = solve_with_conduct(problem), solve_with_conduct(problem.shard())
    np.savez(
        output,
        **{f"one_{name}": values for name, values in one.items()},
        **{f"several_{name}": values for name, values in several.items()},
    )


def on_devices(output: str) -> None:
    """One process."""
    problem, products, _ = build()
    spread = problem.shard()
    (results, one), (spread_results, several) = (solve(p, products) for p in (problem, spread))
    instruments = [r.compute_optimal_instruments().demand_instruments for r in (results, spread_results)]
    started = spread.solve(**STARTS, method="1s", starts=1)
    functions = spread.functions(**STARTS)
    buckets = functions.minimand.model.economy.buckets
    np.savez(
        output,
        **{f"one_{name}": values for name, values in one.items()},
        **{f"several_{name}": values for name, values in several.items()},
        one_instruments=instruments[0],
        several_instruments=instruments[1],
        one_first_step=results.last_results.objective,
        several_first_step=started.objective,
        reestimation=_message(spread_results.reestimate),
        markets=[bucket.size[0] for bucket in problem.economy.buckets],
        places=[bucket.size[0] for bucket in buckets],
        blocks=[[shard.data.shape[0] for shard in bucket.nodes.addressable_shards] for bucket in buckets],
        owned=[[shard.data.shape[0] for shard in part.members.addressable_shards] for part in _ownership(functions)],
        devices=[[shard.device.id for shard in bucket.nodes.addressable_shards] for bucket in buckets],
    )


def in_process(output: str, address: str, count: int, rank: int) -> None:
    """One of several processes."""
    jax.distributed.initialize(address, count, rank)
    problem, products, agents = build()
    several = solve(problem.shard(), products)[1]
    other = blpjax.Problem(
        problem.product_formulations, products, problem.agent_formulation, agents.assign(nodes0=agents["nodes0"] + rank)
    )
    np.savez(
        output,
        **{f"several_{name}": values for name, values in several.items()},
        devices=[len(jax.devices()), len(jax.local_devices())],
        different_agents=_message(other.shard),
        too_few=_message(lambda: problem.shard(1)),
    )
    jax.distributed.shutdown()


def _ownership(functions: Any) -> Any:
    return functions.minimand.data.supply.ownership


def _message(action: Callable[[], Any]) -> str:
    try:
        action()
    except (NotImplementedError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    blpjax.options.verbose = False
    if len(sys.argv) == 2:
        on_devices(sys.argv[1])
    elif sys.argv[2:] == ["conduct"]:
        compete_on_devices(sys.argv[1])
    else:
        in_process(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
