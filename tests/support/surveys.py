"""Small economies with surveys, and what surveys say of them by loops over agents and by removal of products."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import blpjax
from blpjax.economy.buckets import Economy, MarketIndex, build_economy
from blpjax.economy.surveys import Markets
from blpjax.inputs.records import structure
from blpjax.model.parameters import UtilityForm
from blpjax.model.tastes import MarketTastes

#: Axes of choices with J inside goods: whether the outside good is among first and second ones.
SHAPES = [(1,), (0,), (1, 1), (0, 1), (1, 0), (0, 0)]

SIGMA, PI, RHO = np.array([[0.7], [0.3]]), np.array([[0.4], [-0.6]]), np.array([0.2, 0.6, 0.45])


class Small(NamedTuple):
    """Two markets of three and five products, and four and three agents, some of whom cannot choose some products."""

    delta: np.ndarray
    X2: np.ndarray
    weights: np.ndarray
    nodes: np.ndarray
    demographics: np.ndarray
    availability: np.ndarray
    nests: np.ndarray
    groups: np.ndarray
    products: MarketIndex
    agents: MarketIndex

    def economy(self, nested: bool) -> Economy:
        """The same as buckets of arrays."""
        return build_economy(
            self.products,
            self.agents,
            shares=np.full(8, 0.1),
            X2=self.X2,
            weights=self.weights,
            nodes=self.nodes,
            demographics=self.demographics,
            availability=self.availability,
            nests=self.nests[:, None] if nested else None,
        )

    def markets(self, nested: bool) -> Markets:
        """As users' functions get them."""
        products, agents = structure({"X2": self.X2}, 8), {"weights": self.weights, "nodes": self.nodes}
        shown = {"demographics": self.demographics, "availability": self.availability}
        nests = self.nests[:, None] if nested else None
        return Markets(products, structure({**agents, **shown}, 7), self.products, self.agents.rows, self.groups, nests)

    def probabilities(
        self, t: int, i: int, nested: bool, without: Sequence[int] = (), outside: bool = True
    ) -> np.ndarray:
        """Choice probabilities (1 + J,) of an agent, the outside good first, perhaps without some goods."""
        rows, person = self.products.rows[t], self.agents.rows[t][i]
        C = SIGMA @ self.nodes[person] + PI @ self.demographics[person]
        V = (self.delta[rows] + self.X2[rows] @ C).astype(np.longdouble)
        available = self.availability[person, : rows.size].astype(np.longdouble)
        available[list(without)] = 0
        if not nested:
            e = available * np.exp(V)
            total = outside + e.sum()
            return np.r_[outside / total, e / total]
        values, inside = {}, np.zeros(rows.size, np.longdouble)
        for h in np.unique(self.nests[rows]):
            members = self.nests[rows] == h
            e = available[members] * np.exp(V[members] / (1 - RHO[h]))
            values[h] = e.sum() ** (1 - RHO[h])
            inside[members] = e / e.sum() * values[h] if e.sum() > 0 else 0
        total = outside + sum(values.values())
        return np.r_[outside / total, inside / total]

    def joint(self, t: int, i: int, nested: bool, grouped: bool) -> np.ndarray:
        """Joint probabilities (1 + J, 1 + J) of first and second choices, by removal of what was chosen first."""
        rows = self.products.rows[t]
        J, groups = rows.size, self.groups[rows]
        s, found = self.probabilities(t, i, nested), np.zeros((1 + rows.size,) * 2, np.longdouble)
        without = self.probabilities(t, i, nested, outside=False)
        for j, k in itertools.product(range(1 + J), repeat=2):
            if j == k == 0:
                continue
            if j == 0:
                found[j, k] = without[k] - s[k]
                continue
            group = np.flatnonzero(groups == groups[j - 1]) if grouped else np.array([j - 1])
            if k - 1 in group:
                continue
            whole = s[1 + group].sum()
            rest = self.probabilities(t, i, nested, group)
            found[j, k] = s[j] / whole * (rest[k] - s[k]) if whole > 0 else 0
        return found

    def sums(
        self, shape: Sequence[int], nested: bool, grouped: bool, arrays: dict[int, list[np.ndarray]]
    ) -> np.ndarray:
        """Sums of weights (market by market, the first of the arrays), and of weights times values (the others)."""
        total = np.zeros(len(arrays[0]), np.longdouble)
        for t, (weights, *values) in arrays.items():
            for i, person in enumerate(self.agents.rows[t]):
                s = self.joint(t, i, nested, grouped) if len(shape) > 1 else self.probabilities(t, i, nested)
                s = s[tuple(slice(1 - among, None) for among in shape)]
                for r, v in enumerate([1.0, *values]):
                    total[r] += (self.weights[person] * s * weights[i] * (v if r == 0 else v[i])).sum()
        return total.astype(float)


def small() -> Small:
    """The economy: nests of two, one and two products, groups that lie within nests or join whole ones."""
    rng = np.random.default_rng(3)
    availability = np.ones((7, 5))
    availability[:4, 3:] = 0
    availability[[0, 2, 5, 6], [0, 1, 4, 2]] = 0
    availability[1, 2] = 0.5
    return Small(
        delta=rng.normal(size=8),
        X2=rng.normal(size=(8, 2)),
        weights=np.array([0.4, 0.3, 0.2, 0.1, 0.5, 0.2, 0.3]),
        nodes=rng.normal(size=(7, 1)),
        demographics=rng.normal(size=(7, 1)),
        availability=availability,
        nests=np.array([0, 1, 0, 0, 0, 1, 2, 2]),
        groups=np.array(["a", "b", "a", "u", "v", "w", "w", "w"]),
        products=MarketIndex(np.array(["s", "t"]), (np.array([0, 1, 2]), np.array([3, 4, 5, 6, 7]))),
        agents=MarketIndex(np.array(["s", "t"]), (np.array([3, 0, 1, 2]), np.array([4, 5, 6]))),
    )


def tastes(nested: bool, sigma: Any = SIGMA, pi: Any = PI, rho: Any = RHO) -> MarketTastes:
    """Tastes of the economy."""
    return MarketTastes(sigma, pi, rho if nested else np.zeros(1), np.zeros(0), (0,), UtilityForm())


def survey_of(
    shape: Sequence[int], grouped: bool, rows: int = 3, seed: int = 0
) -> tuple[list[blpjax.MicroPart], dict[int, list[np.ndarray]]]:
    """Parts of a dataset whose weights and values are random, some of them zero, and these arrays by market."""
    rng = np.random.default_rng(seed)
    arrays: dict[int, list[np.ndarray]] = {}
    for t, (J, people) in enumerate([(3, 4), (5, 3)]):
        size = (people, *(J + among for among in shape))
        arrays[t] = [rng.uniform(size=size) * (rng.uniform(size=size) > 0.2), *rng.normal(size=(rows - 1, *size))]

    def get(row: int) -> Any:
        # in chunks the function sees some of the agents, which it knows by their nodes
        def compute(t: str, products: Any, agents: Any) -> np.ndarray:
            economy = small()
            everybody = economy.nodes[economy.agents.rows["st".index(t)], 0]
            chosen = [int(np.flatnonzero(everybody == node)[0]) for node in agents.nodes[:, 0]]
            return arrays["st".index(t)][row][chosen]

        return compute

    index = 0 if grouped and len(shape) > 1 else None
    dataset = blpjax.MicroDataset("d", 100, get(0), eliminated_product_ids_index=index)
    return [blpjax.MicroPart(f"p{row}", dataset, get(row)) for row in range(1, rows)], arrays
