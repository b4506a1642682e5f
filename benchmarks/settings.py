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
class UnequalSize:
    """Size of a simulated economy of unequal markets: numbers of products and of agents vary.

    Markets have from `least` to `most` products, and `agents` agents give or take a fifth, uniformly and independently.
    """

    markets: int = 2000
    least: int = 5
    most: int = 150
    agents: int = 100

    def __str__(self) -> str:
        return f"T={self.markets} J={self.least}-{self.most} I={self.agents}"


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
    nested : size of the simulated economy of the nested logit.
    rcnl : nodes in each of two dimensions of the product rule of the random coefficients nested logit.
    unequal : size of the simulated economy of unequal markets.
    unequal_pyblp : how many of them PyBLP evaluates.
    study_markets : number of markets in each replication of a Monte Carlo study.
    batches : numbers of replications that are processed together.
    """

    repeat: int = 3
    warm: int = 10
    pyblp: bool = True
    starts: int = 50
    size: Size = Size()
    equilibrium: Size = Size(1000, 10, 100)
    nested: Size = Size(2000, 55, 0)
    rcnl: int = 7
    unequal: UnequalSize = UnequalSize()
    unequal_pyblp: int = 200
    study_markets: int = 50
    batches: tuple[int, ...] = (1, 10, 100, 1000)


QUICK = Settings(repeat=1, warm=5, pyblp=False, starts=10)
