"""Numbers of a conduct that are parameters of the model, and the same conduct at values of these."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Float

from blpjax.kernels.arrays import AnyArray
from blpjax.kernels.priced_market import Owners

Tree = TypeVar("Tree")


class Parameter(eqx.Module):
    """A number of a conduct that is not known: an element of kappa, which `Problem.solve` estimates.

    It stands in place of a number, for example ``Bertrand(weights=Parameter("weight"))`` or
    ``Bargaining(power=Parameter("power"))``. Where the same name stands twice, it is one parameter.

    Parameters
    ----------
    name : what it is called in tables. Kappa has the elements of a conduct in the order of its arguments.

    Raises
    ------
    TypeError
        When the name is no text.
    """

    name: str = eqx.field(static=True)
    bounds: tuple[float, float] = eqx.field(static=True, repr=False)

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be the name of a parameter, such as 'weight', not {name!r}.")
        self.name, self.bounds = name, (-math.inf, math.inf)

    def within(self, lower: float, upper: float) -> "Parameter":
        """The same with other default bounds."""
        found = Parameter(self.name)
        object.__setattr__(found, "bounds", (lower, upper))
        return found


class PairWeights(eqx.Module):
    """Profit weights (F, F) by codes of owners, ``base + sum_c kappa_c parts_c``, with the parameter of each part."""

    base: Float[AnyArray, "F F"]
    parts: tuple[tuple[Parameter, Float[AnyArray, "F F"]], ...]


def parameters_of(conduct: Any) -> dict[str, tuple[float, float]]:
    """Names of the parameters of a conduct as it was given, with their default bounds."""
    found: dict[str, tuple[float, float]] = {}
    for leaf in jax.tree.leaves(conduct, is_leaf=lambda one: isinstance(one, Owners | Parameter)):
        held = leaf.weights if isinstance(leaf, Owners) else leaf
        for one in held.values() if isinstance(held, Mapping) else (held,):
            if isinstance(one, Parameter):
                lower, upper = found.get(one.name, (-math.inf, math.inf))
                found[one.name] = max(lower, one.bounds[0]), min(upper, one.bounds[1])
    return found


def at_parameters(conduct: Tree, values: Mapping[str, Any]) -> Tree:
    """The conduct, as kernels read it, with numbers in place of its parameters."""

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, PairWeights):
            return leaf.base + sum(values[one.name] * part for one, part in leaf.parts)
        return values[leaf.name] if isinstance(leaf, Parameter) else leaf

    found: Tree = jax.tree.map(fill, conduct, is_leaf=lambda one: isinstance(one, PairWeights | Parameter))
    return found


def refuse_parameters(conduct: Any, argument: str = "conduct") -> None:
    """Raise `ValueError` where a conduct has parameters although all its numbers have to be known."""
    names = parameters_of(conduct)
    if names:
        raise ValueError(
            f"{argument} {conduct.name} has parameters ({', '.join(map(repr, names))}), which only the conduct of "
            "Problem and Simulation may have. Give numbers in their place, such as those of the results' kappa."
        )
