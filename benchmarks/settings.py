"""How much is run. Imports nothing that uses BLAS, so that the number of its threads can still be set."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """Size of a simulated economy of equal markets: numbers of markets, products and agents in each."""

    markets: int = 500
    products: int = 50
    agents: int = 1000

    def __str__(self) -> str:
        return f"T={self.markets} J={self.products} I={self.agents}"


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
    equilibrium : size of the simulated economy whose prices are found.
    """

    repeat: int = 3
    warm: int = 10
    pyblp: bool = True
    starts: int = 50
    size: Size = Size()
    equilibrium: Size = Size(1000, 10, 100)


QUICK = Settings(repeat=1, warm=5, pyblp=False, starts=10)
