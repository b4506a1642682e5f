"""Results from files that `ProblemResults.save` has written."""

import os

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
        return ProblemResults.from_state(Problem.from_state(state["problem"]), state["steps"], state.get("starts"))
    except (AttributeError, LookupError, TypeError) as error:
        raise StorageError(
            f"The file '{os.fspath(path)}' is damaged: its content does not describe results "
            f"({type(error).__name__}: {error})."
        ) from error
