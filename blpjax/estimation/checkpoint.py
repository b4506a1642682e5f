"""The best points of an estimation so far, in a file, so that one that was killed goes on from there."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blpjax import options
from blpjax.exceptions import StorageError
from blpjax.machine.pickling import replace_file
from blpjax.optimize.bounds import Box

_FORMAT = 1


class Checkpoint:
    """The best point of each GMM step of an estimation, in a file that is replaced whenever there is a better one.

    Parameters
    ----------
    path : the file. One that is there belongs to the same estimation: of the same parameters, on as many products.
    names : of the P elements of theta.
    products : their number.

    Raises
    ------
    StorageError
        When the file cannot be read or written, or belongs to another estimation.
    """

    def __init__(self, path: Path, names: Sequence[str], products: int) -> None:
        self.path = path
        self._known: dict[str, Any] = {"format": _FORMAT, "parameters": list(names), "products": products}
        self._steps: dict[str, dict[str, Any]] = {}
        if not path.exists():
            self._write()  # so that a path that cannot be written is found now, and not after hours
            return
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            self._steps = {step: _read_point(point, len(names)) for step, point in state.pop("steps").items()}
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{path} holds no points of an estimation. Use another path.") from error
        if state != self._known:
            raise StorageError(
                f"{path} holds points of another estimation, of {state.get('products')} products and the parameters "
                f"{', '.join(map(str, state.get('parameters', [])))}. Use another path, or delete the file."
            )

    def start(self, step: int, theta: np.ndarray, bounds: Box) -> np.ndarray:
        """Where a step begins: at its best point in the file, within bounds, or else at theta (P,)."""
        point = self._steps.get(str(step))
        if point is None:
            return theta
        options.output(f"Going on from the best point of step {step} in {self.path}: {point['objective']:.6g}.")
        return np.clip(np.array(point["theta"]), bounds.lower, bounds.upper)

    def keep(self, step: int, theta: np.ndarray, objective: float) -> None:
        """Take note of an evaluation that succeeded, if it is the best one of its step."""
        known = self._steps.get(str(step))
        if known is None or objective < known["objective"]:
            self._steps[str(step)] = {"objective": float(objective), "theta": np.asarray(theta, float).tolist()}
            self._write()

    def _write(self) -> None:
        try:
            with replace_file(self.path) as file:
                file.write(json.dumps({**self._known, "steps": self._steps}).encode())
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error}.") from error


def _read_point(point: Any, size: int) -> dict[str, Any]:
    theta = np.array(point["theta"], float)
    if theta.shape != (size,) or not np.isfinite([*theta, point["objective"]]).all():
        raise ValueError("theta")
    return {"objective": float(point["objective"]), "theta": theta.tolist()}
