"""A study without estimations: rows of numbers, and a list of the batches that were run."""

import os
import signal

import numpy as np
import pandas as pd


class CountingStudy:
    """Two rows for each unit. At the batch that begins with `bad` an error is raised, or the process killed."""

    unit = "replications"
    columns = ("replication", "row", "square", "text")

    def __init__(self, fingerprint: str = "counting", bad: int = -1, kill: bool = False) -> None:
        self.fingerprint = fingerprint
        self.ran: list[tuple[int, int]] = []
        self.bad = bad
        self.kill = kill

    def run_batch(self, first: int, size: int) -> pd.DataFrame:
        self.ran.append((first, size))
        if first == self.bad:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError(f"nothing to count at {first}")
        numbers = np.repeat(np.arange(first, first + size), 2)
        return pd.DataFrame(
            {
                "replication": numbers,
                "row": np.tile([0, 1], size),
                "square": numbers**2.0,
                "text": [f"number {number}" for number in numbers],
            }
        )
