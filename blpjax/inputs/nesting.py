"""Groups of products, and groups within these, by their IDs."""

from typing import NamedTuple

import numpy as np


class Nesting(NamedTuple):
    """Which groups products belong to.

    `codes` (N, levels) are places among all groups, those of subgroups after those of groups, as in a vector rho with
    an element for each. The innermost level comes first. `groups` (H,) are sorted IDs, `subgroups` (S, 2) sorted pairs
    of a group's ID and a subgroup's, and `parents` (S,) the places of these groups; there are none without subgroups.
    """

    codes: np.ndarray
    groups: np.ndarray
    subgroups: np.ndarray
    parents: np.ndarray

    @property
    def labels(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of groups and of subgroups."""
        return tuple(map(str, self.groups)), tuple(f"{group}: {own}" for group, own in self.subgroups)


def read_nesting(nesting_ids: np.ndarray, subnesting_ids: np.ndarray | None = None) -> Nesting:
    """Groups by IDs (N,). Subgroups with the same ID in different groups are different ones."""
    groups, codes = np.unique(nesting_ids, return_inverse=True)
    codes = codes.reshape(-1)
    if subnesting_ids is None:
        return Nesting(codes[:, None], groups, np.zeros((0, 2), object), np.zeros(0, int))
    names, own = np.unique(subnesting_ids, return_inverse=True)
    pairs, places = np.unique(codes * names.size + own.reshape(-1), return_inverse=True)
    parents, subgroups = pairs // names.size, np.empty((pairs.size, 2), object)
    subgroups[:, 0], subgroups[:, 1] = groups[parents], names[pairs % names.size]
    return Nesting(np.column_stack([groups.size + places.reshape(-1), codes]), groups, subgroups, parents)
