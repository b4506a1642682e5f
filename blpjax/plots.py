"""Figures of results: substitution, prices, welfare, markups, tests, the objective, replications; extra ``plots``.

Import it by name, ``from blpjax import plots``: nothing else in blpjax does. Each function draws into one axis of
matplotlib, a new one by default, and returns it. Figures of tests of conduct and of the objective are in modules of
their own, whose functions are here, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from blpjax.conduct_plots import plot_conduct_test
from blpjax.inputs.arguments import check_choice
from blpjax.model.scenario import State
from blpjax.objective_plots import plot_objective_profile
from blpjax.outputs.outcome import Counterfactual
from blpjax.outputs.outputs import Outputs
from blpjax.studies.results import MonteCarloResults
from blpjax.values import read_flag

try:
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex
except ImportError as error:
    raise ImportError('blpjax.plots needs matplotlib. Install it with pip install "blpjax[plots]".') from error

__all__ = [
    "plot_conduct_test",
    "plot_diversion_ratios",
    "plot_elasticities",
    "plot_markups",
    "plot_objective_profile",
    "plot_passthrough",
    "plot_price_changes",
    "plot_replications",
    "plot_welfare",
]

#: Cells of heatmaps with at most this many rows show their numbers, unless asked otherwise.
ANNOTATED_SIZE = 12


def plot_elasticities(
    results: Outputs,
    market_id: Any,
    name: str | None = "prices",
    products: Sequence[int] | None = None,
    labels: Sequence[Any] | None = None,
    annotate: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heatmap of one market's elasticities, of the share of the row's product in the variable of the column's.

    Own elasticities, usually larger by orders of magnitude, are on the diagonal and have a grey scale of their own.

    Parameters
    ----------
    results : results of estimation or simulation.
    market_id : the market.
    name : the variable, or None for delta, as in `compute_elasticities`.
    products : positions in the market of the products to show, counted from zero; by default all.
    labels : names of the products shown; by default their product IDs, or else positions.
    annotate : whether to write numbers into all cells; by default, for up to 12 products.
    ax : where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        When there is no such market, positions are not those of products, or there is not one label for each product.
    TypeError
        When results hold draws rather than one set of parameters.
    """
    _refuse_draws(results)
    matrix = results.compute_elasticities(name, market_id=market_id)
    market = _Market(results, market_id, products, labels)
    ax = _draw_matrix(market, matrix, ("cross elasticity", "own elasticity"), annotate, ax)
    ax.set(title=f"Elasticities, market {market_id}", ylabel="share of", xlabel=f"{name or 'delta'} of")
    return ax


def plot_diversion_ratios(
    results: Outputs,
    market_id: Any,
    name: str | None = "prices",
    products: Sequence[int] | None = None,
    labels: Sequence[Any] | None = None,
    annotate: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heatmap of one market's diversion ratios from the product of the row to that of the column.

    Diversion to the outside good is on the diagonal and has a grey scale of its own. Arguments and errors are those of
    `plot_elasticities`.
    """
    _refuse_draws(results)
    matrix = results.compute_diversion_ratios(name, market_id=market_id)
    market = _Market(results, market_id, products, labels)
    ax = _draw_matrix(market, matrix, ("to the product of the column", "to the outside good"), annotate, ax)
    ax.set(title=f"Diversion ratios, market {market_id}", ylabel="from", xlabel="to (diagonal: to the outside good)")
    return ax


def plot_passthrough(
    results: Outputs,
    market_id: Any,
    products: Sequence[int] | None = None,
    labels: Sequence[Any] | None = None,
    annotate: bool | None = None,
    ax: Axes | None = None,
    conduct: Any = None,
) -> Axes:
    """Heatmap of one market's passthrough ``dp_j / dc_k``, of costs of the column's product to prices of the row's.

    Own passthrough is on the diagonal and has a grey scale of its own. `conduct` is that of `compute_passthrough`;
    other arguments and errors are those of `plot_elasticities`.
    """
    _refuse_draws(results)
    matrix = results.compute_passthrough(market_id=market_id, conduct=conduct)
    market = _Market(results, market_id, products, labels)
    ax = _draw_matrix(market, matrix, ("passthrough to rivals", "own passthrough"), annotate, ax)
    ax.set(title=f"Passthrough, market {market_id}", ylabel="price of", xlabel="cost of")
    return ax


def plot_price_changes(
    results: Outputs | Counterfactual,
    changed_prices: Any = None,
    prices: Any = None,
    firm_ids: Any = None,
    labels: Mapping[Any, str] | None = None,
    highlight: Iterable[Any] = (),
    ax: Axes | None = None,
    *,
    by: str = "firm",
) -> Axes:
    """Changes of prices in per cent, a box for each firm: median, quartiles, and whiskers from 5% to 95%.

    Counterfactuals with standard errors or draws have the mean change of each firm instead, with its 95% interval.

    Parameters
    ----------
    results : a counterfactual, or results of estimation or simulation. New and dropped products of counterfactuals,
        which have no price on one side, are left out.
    changed_prices : (N,) prices after a merger or another change, as from `compute_prices`. Counterfactuals have them.
    prices : (N,) prices before; by default those of the product table.
    firm_ids : (N,) firms by which to group; by default those of the product table, before the change.
    labels : names of firms by firm ID. Others are called by their IDs.
    highlight : IDs of firms to draw in another colour, for example those that merge.
    ax : where to draw.
    by : ``'firm'``, or ``'product'`` or ``'market'``, whose IDs are meant then wherever those of firms are above.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        When there is not one number or ID for each product, prices are missing (as where no equilibrium was found), or
        firms to highlight or to label do not exist.
    """
    check_choice("by", by, ("firm", "product", "market"))
    table = _changes(results, changed_prices, prices)
    groups = _by_firm(np.arange(len(table)), _read_groups(table, by, firm_ids))
    change = table["change"].to_numpy()
    groups = {key: rows[np.isfinite(change[rows])] for key, rows in groups.items()}
    groups = {key: rows for key, rows in groups.items() if rows.size}
    marked = set(highlight)
    _check_known("highlight", marked, groups, by)
    _check_known("labels", labels or {}, groups, by)
    uncertain = isinstance(results, Counterfactual) and "prices_change_se" in results.products
    ordered = sorted(groups, key=lambda key: float((np.mean if uncertain else np.median)(change[groups[key]])))
    ax = _axis(ax, (6.4, max(2.4, 0.3 * len(ordered) + 1)))
    if isinstance(results, Counterfactual) and uncertain:
        _draw_means(results, {key: groups[key] for key in ordered}, marked, ax)
    else:
        _draw_boxes({key: change[groups[key]] for key in ordered}, marked, ax)
    ax.axvline(0, color="black", linewidth=0.8, zorder=0)
    ax.set_yticks(range(1, len(ordered) + 1), labels=[_firm_label(key, labels) for key in ordered])
    what = "mean change of price (%), with 95% intervals" if uncertain else "change of price (%)"
    ax.set(xlabel=what, ylabel=by, title=f"Price changes by {by}")
    return ax


def plot_welfare(
    outcome: Counterfactual | Mapping[str, Counterfactual], weights: Any = None, ax: Axes | None = None
) -> Axes:
    """Changes of consumer surplus, profits, tax revenue where there are taxes, and their total, as bars.

    Parameters
    ----------
    outcome : a counterfactual, or several by name, side by side. Standard errors or draws add 95% intervals.
    weights : (T,) of markets, as in `Counterfactual.summary`: without them, means over markets are shown.
    ax : where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        When there is no counterfactual, or no equilibrium was found in some market.
    """
    outcomes = dict(outcome) if isinstance(outcome, Mapping) else {"": outcome}
    if not outcomes:
        raise ValueError("outcome must be a counterfactual, or at least one by name.")
    for one in outcomes.values():
        _check_equilibrium(one)
    taxed = any(one.taxed for one in outcomes.values())
    names = ["consumer_surplus", "profits", *(["revenue"] if taxed else []), "total"]
    ax = _axis(ax)
    width = 0.8 / len(outcomes)
    for k, (label, one) in enumerate(outcomes.items()):
        table = one.summary(weights).loc[names]
        places = np.arange(len(names)) + width * (k - (len(outcomes) - 1) / 2)
        errors = 1.96 * table["change_se"] if "change_se" in table else None
        if one.draws is not None:
            errors = np.abs(table[["change_lower", "change_upper"]].T - table["change"]).to_numpy()
        color = "lightsteelblue" if len(outcomes) == 1 else f"C{k}"
        ax.bar(places, table["change"], width, yerr=errors, capsize=3, color=color, label=label)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xticks(range(len(names)), labels=[name.replace("_", " ") for name in names])
    ax.set(ylabel="change per consumer" if weights is None else "change", title="Welfare")
    if isinstance(outcome, Mapping):
        ax.legend(fontsize="small")
    return ax


def plot_markups(
    results: Outputs,
    markups: Any = None,
    by_firm: bool = False,
    firm_ids: Any = None,
    labels: Mapping[Any, str] | None = None,
    bins: int = 40,
    ax: Axes | None = None,
) -> Axes:
    """Histogram of markups as fractions of prices, with their median.

    Parameters
    ----------
    results : results of estimation or simulation.
    markups : (N,) markups; by default those of `compute_markups`.
    by_firm : whether to stack the histograms of firms.
    firm_ids : (N,) firms by which to group; by default those of the product table.
    labels : names of firms by firm ID. Others are called by their IDs.
    bins : number of bins.
    ax : where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        When there is not one number or ID for each product, or firms that are labelled do not exist.
    TypeError
        When results hold draws rather than one set of parameters.
    """
    if markups is None:
        _refuse_draws(results)
        markups = results.compute_markups()
    values = _read_numbers("markups", markups, results.output_tables.products.shares.size)
    ax = _axis(ax)
    if read_flag("by_firm", by_firm):
        ids = results.output_tables.products.firm_ids if firm_ids is None else firm_ids
        groups = _by_firm(values, _read_keys("firm", ids, values.size))
        _check_known("labels", labels or {}, groups)
        names = [_firm_label(firm, labels) for firm in groups]
        shades = [to_hex(color) for color in pyplot.get_cmap("viridis")(np.linspace(0, 1, len(groups)))]
        ax.hist(list(groups.values()), bins, stacked=True, color=shades, label=names)
    else:
        ax.hist(values, bins, color="lightsteelblue", edgecolor="white", linewidth=0.3)
    median = float(np.median(values))
    ax.axvline(median, color="black", linewidth=1, label=f"median {median:.3f}")
    ax.legend(title="firm" if by_firm else None, ncols=1 if not by_firm else 1 + len(names) // 12, fontsize="small")
    ax.set(xlabel="markup, (p - c) / p", ylabel="products", title="Markups")
    return ax


def plot_replications(
    results: MonteCarloResults,
    parameter: str,
    block: str | None = None,
    bins: int = 40,
    ax: Axes | None = None,
) -> Axes:
    """How estimates of a Monte Carlo study lie around the truth, in standard errors, beside the standard normal.

    Inference relies on the two being the same. Failed replications, and those that do not identify the parameter, are
    left out; values beyond five standard errors are counted in the outermost bins.

    Parameters
    ----------
    results : results of `MonteCarlo.run`.
    parameter : its label in the table.
    block : its block, such as `gamma`, where several have a parameter of this label.
    bins : number of bins.
    ax : where to draw.

    Raises
    ------
    ValueError
        When there is no such parameter, or more than one, its true value is not known, or no replication succeeded.
    """
    table = results.table[results.table["parameter"] == parameter]
    blocks = sorted(set(table["block"]) if block is None else {block} & set(table["block"]))
    if len(blocks) != 1:
        known = pd.unique(results.table["block"] + " " + results.table["parameter"])
        what = "None" if not blocks else f"More than one, in {', '.join(blocks)},"
        raise ValueError(f"{what} of the parameters is {parameter!r}. There are: {', '.join(known)}.")
    rows = table[(table["block"] == blocks[0]) & table["ok"] & table["identified"]]
    distances = ((rows["estimate"] - rows["true"]) / rows["standard_error"]).to_numpy()
    if not np.isfinite(distances).all() or not distances.size:
        raise ValueError(f"{blocks[0]} {parameter} has no known true value, or no replication that succeeded.")
    ax = _axis(ax)
    ax.hist(
        np.clip(distances, -5, 5), bins=bins, range=(-5, 5), density=True, color="lightsteelblue", label="replications"
    )
    grid = np.linspace(-5, 5, 201)
    normal = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    ax.plot(grid, normal, color="black", linewidth=0.8, label="standard normal")
    ax.set(xlabel="(estimate - truth) / standard error", ylabel="density")
    ax.set_title(f"{blocks[0]} {parameter}, {len(rows)} replications")
    ax.legend(fontsize="small")
    return ax


# what figures share


class _Market:
    """Which products of a market are shown (positions), and under which names."""

    def __init__(
        self, results: Outputs, market_id: Any, products: Sequence[int] | None, labels: Sequence[Any] | None
    ) -> None:
        table, markets = results.output_tables.products, results.output_tables.markets
        rows = markets.rows[int(np.flatnonzero(markets.ids == market_id)[0])]
        self.products = np.arange(rows.size) if products is None else np.asarray(products)
        if self.products.ndim != 1 or not np.isin(self.products, np.arange(rows.size)).all() or not self.products.size:
            raise ValueError(f"products must be positions between 0 and {rows.size - 1} in market {market_id!r}.")
        if labels is not None:
            if len(labels) != self.products.size:
                raise ValueError(f"labels must name {self.products.size} products, not {len(labels)}.")
            self.labels = [str(label) for label in labels]
        elif table.product_ids is not None:
            ids = table.product_ids.reshape(table.shares.size, -1)[:, 0]
            self.labels = [str(label) for label in ids[rows[self.products]]]
        else:
            self.labels = [str(position) for position in self.products]


def _changes(results: Outputs | Counterfactual, changed_prices: Any, prices: Any) -> pd.DataFrame:
    """IDs of products and changes of their prices in per cent, a row for each product."""
    if isinstance(results, Counterfactual):
        if changed_prices is not None or prices is not None:
            raise ValueError("changed_prices and prices must not be given with a counterfactual, which has its own.")
        _check_equilibrium(results)
        table = results.products.rename(columns={"firm_before": "firm", "market_ids": "market"})
        return table.assign(change=100 * (table["prices_after"] / table["prices_before"] - 1))
    if changed_prices is None:
        raise ValueError("changed_prices must be given: only counterfactuals have prices after a change.")
    products, extent = results.output_tables.products, results.ask(None, False, False, "shares").extent
    N = products.shares.size
    before = _read_numbers("prices", products.prices if prices is None else prices, N)
    change = 100 * (_read_numbers("changed_prices", changed_prices, N) / before - 1)
    markets, ids = extent.product_labels
    columns = {"market": markets, "product": ids, "firm": products.firm_ids, "change": change}
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def _check_equilibrium(outcome: Counterfactual) -> None:
    failed = outcome.markets.loc[~outcome.markets["converged"], "market_ids"].tolist()
    if failed:
        raise ValueError(f"No equilibrium was found in {len(failed)} markets, such as {failed[0]!r}.")


def _draw_boxes(groups: Mapping[Any, np.ndarray], marked: set[Any], ax: Axes) -> None:
    boxes = ax.boxplot(
        list(groups.values()),
        orientation="horizontal",
        widths=0.6,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        medianprops={"color": "black"},
    )
    for key, box in zip(groups, boxes["boxes"], strict=True):
        box.set_facecolor("tab:orange" if key in marked else "lightsteelblue")


def _draw_means(outcome: Counterfactual, groups: Mapping[Any, np.ndarray], marked: set[Any], ax: Axes) -> None:
    """Mean changes over rows of products, with intervals."""

    def means(before: State, after: State) -> Any:
        return {k: 100 * jnp.mean(after.prices[r] / before.prices[r] - 1) for k, r in enumerate(groups.values())}

    if outcome.draws is None:
        found = outcome.delta_method(means)
        centres, limits = found.value, {k: (found.lower[k], found.upper[k]) for k in found.value}
    else:
        drawn = outcome.over_draws(means)
        centres = {k: np.asarray(value) for k, value in means(outcome.before, outcome.after).items()}
        limits = {k: np.nanquantile(values, [0.025, 0.975]) for k, values in drawn.items()}
    for k, key in enumerate(groups):
        color, lengths = "tab:orange" if key in marked else "tab:blue", np.abs(np.asarray(limits[k]) - centres[k])
        ax.errorbar(float(centres[k]), k + 1, xerr=lengths[:, None], fmt="o", color=color)


def _draw_matrix(market: _Market, matrix: Any, scales: tuple[str, str], annotate: bool | None, ax: Axes | None) -> Axes:
    """Draw a matrix whose elements off and on the diagonal have scales of their own, which are called so."""
    values = np.asarray(matrix)[np.ix_(market.products, market.products)]
    size = len(values)
    ax = _axis(ax, (2.2 + 0.45 * min(size, 20), 1.4 + 0.45 * min(size, 20)))
    diagonal = market.products[:, None] == market.products
    image = ax.imshow(np.ma.array(values, mask=diagonal), cmap="viridis")
    own = ax.imshow(np.ma.array(values, mask=~diagonal), cmap="Greys_r" if values[diagonal].max() <= 0 else "Greys")
    own.norm.autoscale(np.append(values[diagonal], 0.0))
    for scale, label in zip((own, image), scales[::-1], strict=True):
        ax.figure.colorbar(scale, ax=ax, label=label, shrink=0.8)
    ticks = range(size)
    ax.set_xticks(ticks, labels=market.labels, rotation=90)
    ax.set_yticks(ticks, labels=market.labels)
    if size <= ANNOTATED_SIZE if annotate is None else annotate:
        cells = zip(*np.nonzero(np.isfinite(values)), strict=True)
        for j, k in cells:
            scale = own if diagonal[j, k] else image
            dark = bool(np.dot(scale.cmap(scale.norm(values[j, k]))[:3], (0.3, 0.6, 0.1)) < 0.5)
            text = f"{values[j, k]:.3g}"
            ax.text(k, j, text, ha="center", va="center", color="white" if dark else "black", fontsize="x-small")
    return ax


# arguments


def _axis(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    return pyplot.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _refuse_draws(results: Outputs) -> None:
    if results.draws is not None:
        raise TypeError(
            f"{type(results).__name__} holds {results.draws} draws: plot results with one set of parameters."
        )


def _read_numbers(name: str, values: Any, size: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold {size} numbers, one for each product.") from error
    if array.size != size:
        raise ValueError(f"{name} must hold {size} numbers, one for each product, not {array.size}.")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"{name} must be finite, but {bad.size} of them are not: row {bad[0]} is {array[bad[0]]}.")
    return array


def _read_groups(table: pd.DataFrame, by: str, firm_ids: Any) -> np.ndarray:
    if firm_ids is not None and by != "firm":
        raise ValueError(f"firm_ids must not be given with by={by!r}.")
    return _read_keys(by, table.get(by) if firm_ids is None else firm_ids, len(table))


def _read_keys(by: str, ids: Any, size: int) -> np.ndarray:
    if ids is None:
        raise ValueError(f"{by}_ids must be given, because there is no column '{by}_ids' in product_data.")
    array = np.asarray(ids).reshape(-1)
    if array.size != size:
        raise ValueError(f"{by}_ids must hold {size} IDs, one for each product, not {array.size}.")
    return array


def _by_firm(values: np.ndarray, firms: np.ndarray) -> dict[Any, np.ndarray]:
    return {firm: values[firms == firm] for firm in np.unique(firms).tolist()}


def _check_known(name: str, ids: Iterable[Any], groups: Mapping[Any, np.ndarray], by: str = "firm") -> None:
    unknown = [key for key in ids if key not in groups]
    if unknown:
        raise ValueError(f"{name} has {unknown[0]!r}, which is not the ID of a {by}.")


def _firm_label(firm: Any, labels: Mapping[Any, str] | None) -> str:
    return str((labels or {}).get(firm, firm))
