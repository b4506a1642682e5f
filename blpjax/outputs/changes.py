"""Arguments of counterfactuals, checked."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from blpjax.economy.conduct import ConductData, prepare_known_conduct
from blpjax.exceptions import DataError
from blpjax.inputs.arguments import check_index
from blpjax.inputs.table_format import plain_value, read_table
from blpjax.inputs.tables import ProductTable
from blpjax.inputs.taxes import Taxes
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.model.model import Model
from blpjax.model.scenario import Scenario
from blpjax.outputs.consumer_taxes import check_linear_prices, read_consumer_taxes
from blpjax.outputs.entry import Entry
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.query import Query, Source, read_iteration
from blpjax.values import read_flag


def read_scenario(source: Source, before: Sequence[Scenario], given: dict[str, Any]) -> Scenario:
    """The scenario that arguments of `counterfactual` describe, after those that there were `before`.

    Raises
    ------
    ValueError, TypeError, NameError, NotImplementedError
        See there.
    """
    query, products = source.ask(None, False, False, "shares"), source.output_tables.products
    N = products.shares.size
    constant_costs = read_flag("constant_costs", given["constant_costs"])
    drop, hold = (_read_products(source, name, given[name]) for name in ("drop", "hold"))
    if hold is not None and given["prices"] is not None:
        raise ValueError("hold has no meaning where prices are given, which nobody sets.")
    if hold is not None and drop is not None and (hold & drop).any():
        row = int(np.flatnonzero(hold & drop)[0])
        raise ValueError(f"hold and drop are both true in row {row}.")
    firms = read_firms(query, products.firm_ids, given["firm_ids"])
    _, owned = query.read_ownership(None, given["ownership"])
    if firms is not None and owned:
        raise ValueError("Give either firm_ids or ownership, not both.")
    costs = given["costs"]
    if costs is not None and not callable(costs):
        costs = query.read(costs=costs)["costs"]
    taxes = given["taxes"]
    if taxes is not None and not isinstance(taxes, Taxes):
        raise TypeError(f"taxes must be a Taxes, not {type(taxes).__name__}.")
    kept = unit = paid = None
    if taxes is not None:
        kept, unit = (
            query.read(taxes=np.broadcast_to(values, N) if np.ndim(values) == 0 else values)["taxes"]
            for values in (taxes.kept, np.asarray(taxes.unit, float))
        )
        if taxes.consumers is not None:
            check_linear_prices(source.model)
            paid = read_consumer_taxes(source.output_tables, taxes.consumers)
        elif drop is not None and not ((kept != 1) | (unit != 0))[~drop].any():
            raise ValueError("taxes are on no product that remains.")
    if not constant_costs and (taxes is not None or any(one.kept is not None for one in before)):
        raise NotImplementedError("Costs that move with shares are not supported with taxes. Use constant_costs=True.")
    iteration = given["iteration"]
    scenario = Scenario(
        firm_ids=firms,
        ownership=owned.get("ownership"),
        costs=costs,
        changes=_read_variables(source, given["set"], query.read),
        drop=drop,
        hold=hold,
        prices=None if given["prices"] is None else query.read(prices=given["prices"])["prices"],
        kept=kept,
        unit=unit,
        paid=paid,
        iteration=None if iteration is None else read_iteration(iteration),
        constant_costs=constant_costs,
    )
    scenario = dataclasses.replace(scenario, conduct=read_conduct(given.get("conduct"), products, (*before, scenario)))
    _check_taxes(source.model, (*before, scenario))
    return scenario


def read_conduct(conduct: Any, products: ProductTable, scenarios: Sequence[Scenario]) -> ConductData | None:
    """A conduct with owners as the last of some scenarios leaves them; None where there is none.

    Raises
    ------
    TypeError, ValueError, DataError
        See `prepare_known_conduct`; also when firms change but the conduct does not depend on firm IDs.
    """
    if conduct is None:
        return None
    changes = [one for one in scenarios if one.firm_ids is not None or one.ownership is not None]
    if not changes:
        return prepare_known_conduct(conduct, products)
    if changes[-1].firm_ids is None:
        return prepare_known_conduct(conduct, products).with_owners(None, changes[-1].ownership)
    known = prepare_known_conduct(conduct, dataclasses.replace(products, firm_ids=changes[-1].firm_ids))
    known.check_firms()
    return known


def _check_taxes(model: Model, scenarios: Sequence[Scenario]) -> None:
    """Refuse ad valorem taxes under conduct that does not say what these change."""
    kept = next((one.kept for one in reversed(scenarios) if one.kept is not None), None)
    conduct = next((one.conduct for one in reversed(scenarios) if one.conduct is not None), model.conduct)
    if kept is not None and (kept != 1).any() and conduct is not None and not conduct.conduct.taxable:
        raise NotImplementedError(
            f"Ad valorem taxes are not supported with conduct {conduct.name}, which does not say what they change. Use "
            "unit taxes, or conduct in which profits are weighed by owners."
        )


def read_firms(query: Query, known: Any, firm_ids: Any) -> np.ndarray | None:
    """IDs of firms (N,) after a change, which may be a mapping of old IDs, those that are `known`, to new ones.

    Raises
    ------
    ValueError
        When there is not one ID for each product, or no such old one.
    """
    if isinstance(firm_ids, Mapping):
        firm_ids = _merged(known, firm_ids)
    return query.read_ids("firm_ids", firm_ids)


def with_entry(scenario: Scenario, entry: Entry, tables: OutputTables, given: Mapping[str, Any]) -> Scenario:
    """The scenario with rows for new products, whose arguments are those of `counterfactual`.

    `tables` are those without them.

    Raises
    ------
    DataError, NotImplementedError
        When prices are given but not those of new products, or ownership by matrices.
    """
    if scenario.ownership is not None:
        raise NotImplementedError("ownership is not supported with add. Use firm_ids.")
    if not scenario.constant_costs:
        raise NotImplementedError(
            "Costs that move with shares are not supported with add: new products had no shares before. Use "
            "constant_costs=True."
        )
    firms, prices, count = entry.tables.products.firm_ids, entry.tables.products.prices, entry.count
    assert firms is not None
    if scenario.prices is not None and "prices" not in read_table(given["add"], "add"):
        raise DataError("add: there is no column 'prices', which new products need where prices are given.")

    def longer(values: Any, new: Any) -> Any:
        return None if values is None else np.concatenate([values, np.broadcast_to(new, count)])

    costs = scenario.costs
    if costs is not None:
        costs = functools.partial(_costs_of_known, costs, entry.known)
    taxes = given["taxes"]
    ad_valorem, unit = (1.0, 0.0) if taxes is None else (taxes.kept, taxes.unit)
    return dataclasses.replace(
        scenario,
        firm_ids=longer(scenario.firm_ids, firms[entry.known :]),
        costs=costs,
        changes={
            name: longer(values, np.asarray(entry.characteristics.variables[name])[entry.known :])
            for name, values in scenario.changes.items()
        },
        enter=entry.new,
        drop=longer(scenario.drop, False),
        hold=longer(scenario.hold, False),
        prices=longer(scenario.prices, prices[entry.known :]),
        kept=longer(scenario.kept, ad_valorem if np.ndim(ad_valorem) == 0 else 1.0),
        unit=longer(scenario.unit, unit if np.ndim(unit) == 0 else 0.0),
        paid=None if scenario.paid is None else read_consumer_taxes(entry.tables, taxes.consumers, tables),
        conduct=read_conduct(
            given.get("conduct"),
            entry.tables.products,
            [Scenario(firm_ids=longer(scenario.firm_ids, firms[entry.known :]))],
        ),
    )


def _costs_of_known(costs: Any, known: int, all_costs: AnyArray) -> AnyArray:
    """Marginal costs (N,) after those of products that there were have changed."""
    xp = namespace(all_costs)
    found = costs(all_costs[:known]) if callable(costs) else costs
    return xp.concatenate([xp.asarray(found, float).reshape(-1), all_costs[known:]])


def _merged(known: Any, changes: Mapping[Any, Any]) -> np.ndarray:
    """IDs of firms (N,) after some have changed."""
    if known is None:
        raise ValueError("firm_ids must not be a mapping of old IDs, because product_data has no column 'firm_ids'.")
    ids = np.asarray(known, object).reshape(-1)
    for old in changes:
        if not (ids == old).any():
            raise ValueError(f"firm_ids has the old ID {old!r}, which is none of the firm IDs.")
    moved = [changes.get(plain_value(one), one) for one in ids]
    if len({isinstance(one, str) for one in moved}) > 1:
        raise ValueError("firm_ids must have new IDs of the type of old ones: either text or numbers.")
    return np.asarray(moved)


def _read_products(source: Source, name: str, values: Any) -> np.ndarray | None:
    """True where products are meant (N,)."""
    if values is None:
        return None
    products = source.output_tables.products
    check_index(name, values, products.index)
    array = np.asarray(values).reshape(-1)
    if array.dtype != bool or array.size != products.shares.size:
        raise ValueError(f"{name} must be {products.shares.size} times True or False, one for each product.")
    if not array.any():
        raise ValueError(f"{name} is true for no product, so that it changes nothing.")
    return array


def _read_variables(source: Source, changes: Any, read: Callable[..., Any]) -> dict[str, np.ndarray]:
    """New values of variables (N,)."""
    if changes is None:
        return {}
    if not isinstance(changes, Mapping):
        raise TypeError(f"set must be a mapping of names of variables to values, not {type(changes).__name__}.")
    known, found = source.model.characteristics.variables, {}
    for name, values in changes.items():
        if name in ("prices", "shares"):
            other = "Use the argument prices." if name == "prices" else "They follow from other variables."
            raise ValueError(f"set must not have {name!r}. {other}")
        if name not in known:
            variables = ", ".join(sorted(set(known) - {"prices", "shares"}))
            raise NameError(f"set has {name!r}, but no formula has such a numeric variable. There are {variables}.")
        old = np.asarray(known[name])
        new = values(old.copy()) if callable(values) else values
        found[name] = read(**{"set": np.broadcast_to(new, old.shape) if np.ndim(new) == 0 else new})["set"]
    return found
