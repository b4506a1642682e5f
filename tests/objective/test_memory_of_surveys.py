"""Second choices among many products take little memory beyond what the functions of datasets and parts return."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_second_choices_among_three_hundred_products_take_less_than_two_gigabytes() -> None:
    """With 1,000 agents. Values of a part, which a function returns at once, take 0.7 of them."""
    peak, values = measured("300", "1000", "1")
    assert values < peak < 2 * 2**30


@pytest.mark.slow
def test_three_moments_by_column_among_two_hundred_products_take_less_than_one_gigabyte() -> None:
    """With 1,000 agents. Nothing has a number for each agent and pair of choices."""
    assert measured("200", "1000", "1", "1")[0] < 1e9


def measured(*arguments: str) -> list[int]:
    command = [sys.executable, "-m", "tests.support.second_choices", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()[-2:]]
