"""Micro data, which are not implemented yet: what PyBLP's scripts meet says so."""

from typing import Any, NoReturn

#: PyBLP's classes that `blpjax` does not have.
ABSENT_CLASSES = ("MicroDataset", "MicroMoment", "MicroPart")


def explain_absence(name: str) -> str:
    """A sentence on something of PyBLP's that is absent, and what to use."""
    return f"{name} is not supported: micro moments are not implemented yet. Use aggregate moments, or PyBLP."


class MicroMethods:
    """PyBLP's methods of results that need micro data."""

    def compute_micro_values(self, micro_moments: Any) -> NoReturn:
        """Raise `NotImplementedError`."""
        raise NotImplementedError(explain_absence("compute_micro_values"))

    def compute_micro_scores(self, dataset: Any, micro_data: Any, integration: Any = None) -> NoReturn:
        """Raise `NotImplementedError`."""
        raise NotImplementedError(explain_absence("compute_micro_scores"))

    def compute_agent_scores(self, dataset: Any, micro_data: Any = None, integration: Any = None) -> NoReturn:
        """Raise `NotImplementedError`."""
        raise NotImplementedError(explain_absence("compute_agent_scores"))

    def simulate_micro_data(self, dataset: Any, seed: int | None = None) -> NoReturn:
        """Raise `NotImplementedError`."""
        raise NotImplementedError(explain_absence("simulate_micro_data"))
