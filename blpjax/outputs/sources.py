"""What outcomes of counterfactuals need of results."""

from blpjax.model.formulated import Formulated
from blpjax.outputs.outputs import Outputs


class OutcomeSource(Outputs):
    """Results whose counterfactuals there are."""

    _hidden = Outputs._hidden | {"centre"}

    @property
    def formulated(self) -> Formulated:
        """Tables and formulas, in which there may be new products."""
        raise NotImplementedError

    @property
    def centre(self) -> "OutcomeSource":
        """Results at one set of parameters: the estimates that draws are around."""
        return self
