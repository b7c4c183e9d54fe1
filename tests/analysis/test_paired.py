"""Differences seed by seed, against a printed table of Student's t distribution."""

import math

import pytest

from mmsb.analysis.paired import Paired, seeds_needed

T = {1: 12.7062, 2: 4.302653, 3: 3.182446, 4: 2.776445}  # two-sided 95 %, by degrees of freedom


def test_the_difference_is_that_of_pairs():
    found = Paired.of({0: 39.0, 1: 39.0, 2: 39.0}, {2: 42.0, 1: 41.0, 0: 40.0})
    assert (found.n, found.tells) == (3, False)
    assert found.mean == pytest.approx(-2)  # -1, -2, -3: a standard deviation of 1
    assert (found.low, found.high) == pytest.approx((-2 - T[2] / math.sqrt(3), -2 + T[2] / math.sqrt(3)), rel=1e-5)
    assert Paired.of({0: 5.0, 1: 6.1}, {0: 1.0, 1: 2.0}).tells


def test_only_seeds_that_both_have_are_paired():
    found = Paired.of({2: 39.0, 3: 1.0}, {1: 41.0, 2: 42.0})
    assert (found.mean, found.n, found.tells) == (-3, 1, None)
    assert math.isnan(found.low)
    assert Paired.of({2: 39.0}, {1: 41.0}).n == 0
    assert Paired.of({0: math.nan, 1: 1.0}, {0: 1.0, 1: 2.0}).tells is False


@pytest.mark.parametrize('seeds', [2, 3, 4, 5])
def test_seeds_needed_are_those_whose_interval_is_narrow_enough(seeds):
    reach = 0.7 * T[seeds - 1] / math.sqrt(seeds)  # of the interval, to either side
    assert seeds_needed(0.7, -1.001 * reach) == seeds
    assert seeds_needed(0.7, 0.999 * reach) == seeds + 1
    assert seeds_needed(0.7, 0.0) is None
