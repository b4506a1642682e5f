"""Results from files that `ProblemResults.save` has written."""

import os

import numpy as np

from blpjax.exceptions import StorageError
from blpjax.machine import storage
from blpjax.problem.problem import Problem
from blpjax.problem.results import ProblemResults


def load(path: str | os.PathLike[str]) -> ProblemResults:
    """Load results with their problem, its data and the results of previous GMM steps.

    Nothing in the file is executed. The problem is built again, with all checks of its data but without messages, so
    that everything can be computed and the problem can be solved again. Attributes are bit by bit what they were. Where
    `Optimization` or `Iteration` held a function of the user, there is a `blpjax.problem.state.NotStored` instead.

    Parameters
    ----------
    path : the file.

    Raises
    ------
    StorageError
        When blpjax did not write the file, a newer version wrote it, or it is damaged.
    OSError
        When the file cannot be opened.

    Examples
    --------
    ::

        results.save("nevo.blpjax")
        results = blpjax.load("nevo.blpjax")
        results.compute_elasticities()
    """
    state = storage.read(path, "results")
    try:
        problem, known = Problem.from_state(state["problem"]), (state.get("starts"), state.get("micro_moments"))
        if state.get("likelihood"):
            from blpjax.problem.likelihood import read_likelihood_results  # imports much that only likelihoods need

            results: ProblemResults = read_likelihood_results(problem, state)
        else:
            results = ProblemResults.from_state(problem, state["steps"], *known)
        _check_sizes(results)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StorageError(
            f"The file '{os.fspath(path)}' is damaged: its content does not describe results "
            f"({type(error).__name__}: {error})."
        ) from error
    return results


def _check_sizes(results: ProblemResults) -> None:
    """Raise `ValueError` when arrays of results do not have the sizes of each other and of the problem."""
    sizes = {
        results.problem.data.N: ("delta", "xi", "clipped_shares"),
        len(results.theta_labels): ("theta", "gradient", "theta_se"),
        results.moments.size: ("W", "updated_W", "moments_jacobian", "moments_covariances"),
    }
    for size, names in sizes.items():
        for name in names:
            found = np.shape(getattr(results, name, np.zeros(size)))
            if found and found[0] != size:
                raise ValueError(f"{name} has {found[0]} rows instead of {size}")
