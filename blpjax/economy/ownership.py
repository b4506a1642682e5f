"""Who owns what in all markets: by codes of firms, by memberships of firms, or by ownership matrices."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from blpjax.economy.buckets import Economy
from blpjax.inputs.tables import ProductTable
from blpjax.kernels.arrays import AnyArray
from blpjax.kernels.markups import Firms, ownership_matrix
from blpjax.machine.compilation import filtered_program

#: Who owns what, one array for each bucket of markets: codes of firms (T, J), or ownership matrices (T, J, J).
Ownership = tuple[AnyArray, ...]


def firm_codes(economy: Economy, firm_ids: Any) -> Ownership:
    """Standard ownership by firm IDs (N,), which are not traced: codes (T, J) of firms, -1 for padding."""
    _, codes = np.unique(np.asarray(firm_ids).reshape(-1), return_inverse=True)
    parts = _placed_on_host(economy).scatter(codes.reshape(-1) + 1)
    if economy.on_host or not isinstance(parts[0], np.ndarray):
        return tuple(part - 1 for part in parts)
    return tuple(jax.device_put(part - 1) for part in parts)


def _placed_on_host(economy: Economy) -> Economy:
    """The economy with its places of products in a NumPy array, unless these are traced, as where a model is cut."""
    if isinstance(economy.positions, jax.core.Tracer):
        return economy
    return eqx.tree_at(lambda e: e.positions, economy, np.asarray(economy.positions))


def table_ownership(economy: Economy, table: ProductTable) -> Ownership | None:
    """Who owns what: matrices from the data, or else codes of firms; None without either."""
    if table.ownership is not None:
        if economy.placement is not None:
            return economy.unstack(jnp.asarray(np.nan_to_num(table.ownership)))
        host = jax.tree.map(np.asarray, economy)
        return tuple(map(jax.device_put, host.unstack(np.nan_to_num(table.ownership))))
    return None if table.firm_ids is None else firm_codes(economy, table.firm_ids)


def pack_firms(ownership: Ownership) -> tuple[Array | Firms, ...]:
    """Ownership by codes of firms as memberships of each market's firms; ownership matrices as they are.

    Codes must not be traced: their numbers decide shapes.
    """
    return tuple(part if part.ndim == 3 else _pack(np.asarray(part)) for part in ownership)


def ownership_matrices(owned: Ownership) -> Ownership:
    """Ownership matrices (T, J, J), also where there are codes of firms."""
    if all(part.ndim == 3 for part in owned):
        return owned
    return _matrices(owned) if isinstance(owned[0], np.ndarray) else _compiled_matrices(owned)


def _matrices(owned: Ownership) -> Ownership:
    return tuple(ownership_matrix(part) for part in owned)


_compiled_matrices = filtered_program(effort=0)(_matrices)


def _pack(codes: np.ndarray) -> Firms:
    """Memberships by codes (T, J), -1 for padding, which each market numbers from zero."""
    order = np.argsort(codes, axis=1, kind="stable")
    sorted_codes = np.take_along_axis(codes, order, axis=1)
    first = sorted_codes >= 0
    first[:, 1:] &= sorted_codes[:, 1:] != sorted_codes[:, :-1]
    local = np.empty_like(codes)
    np.put_along_axis(local, order, first.cumsum(axis=1) - 1, axis=1)
    return Firms(jax.device_put(local[:, :, None] == np.arange(local.max() + 1)))
