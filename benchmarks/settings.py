"""How much is run."""

import dataclasses

from benchmarks.models import Size


@dataclasses.dataclass(frozen=True)
class Settings:
    """Repetitions and sizes.

    Attributes
    ----------
    repeat : times that slow things are run: a solve by PyBLP, a whole process.
    warm : warm solves by blpjax beside each of PyBLP's, and repetitions of each part of the profile.
    pyblp : whether to run PyBLP.
    starts : number of random starting values.
    size : size of the simulated economy of the memory row.
    """

    repeat: int = 3
    warm: int = 10
    pyblp: bool = True
    starts: int = 50
    size: Size = Size()


QUICK = Settings(repeat=1, warm=5, pyblp=False, starts=10)
