"""The difference of two networks over seeds that both were trained with, and what it tells."""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mmsb.analysis.compare import Row, last_of_runs

CONFIDENCE = 0.95
MANY = 100  # seeds, beyond which nobody will go


@dataclass(frozen=True)
class Paired:
    """A mean difference over the seeds that two networks share.

    Attributes:
        mean: the difference; NaN without a common seed.
        low, high: ends of its 95 % confidence interval by Student's t distribution; NaN for fewer than two seeds.
        n: number of common seeds.
        std: sample standard deviation of the differences; NaN for fewer than two seeds.
    """

    mean: float
    low: float
    high: float
    n: int
    std: float

    @classmethod
    def of(cls, ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> 'Paired':
        """Compare values, by seed."""
        common = sorted(ours.keys() & theirs.keys(), key=str)
        differences = [ours[seed] - theirs[seed] for seed in common]
        nan = math.nan
        if len(common) < 2:
            return cls(differences[0] if common else nan, nan, nan, len(common), nan)
        mean, std = float(np.mean(differences)), float(np.std(differences, ddof=1))
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(common) - 1)) * std / math.sqrt(len(common))
        return cls(mean, mean - reach, mean + reach, len(common), std)

    @property
    def tells(self) -> bool | None:
        """Whether the interval leaves out zero; None if there is none."""
        return None if self.n < 2 else self.low > 0 or self.high < 0


def seeds_needed(std: float, difference: float) -> int | None:
    """Return how many seeds a difference needs, for its interval to leave out zero; None for more than 100.

    Args:
        std: standard deviation of the differences between the networks over the seeds.
        difference: the mean difference that is to be told from zero, in the same unit.
    """
    for n in range(2, MANY + 1):
        if stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * std / math.sqrt(n) < abs(difference):
            return n
    return None


def table_of_differences(rows: Sequence[Row], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Lay out what each row has more than the first one, seed by seed; nothing for rows that share no seed with it."""
    header = ['run', 'metric', f'minus {rows[0].name}', '95 % interval', 'seeds', 'tells', 'seeds to tell such']
    lines = []
    for row, metric in itertools.product(rows[1:], metrics):
        found = Paired.of(*(dict(last_of_runs(one.runs, metric)) for one in (row, rows[0])))
        if not found.n:
            continue
        interval = f'{found.low:+.3g} to {found.high:+.3g}' if found.n > 1 else '-'
        says = {None: 'nothing: one seed', True: 'yes', False: 'no'}[found.tells]
        needed = '-' if found.n < 2 or not found.mean else seeds_needed(found.std, found.mean) or f'over {MANY}'
        lines.append([row.name, metric, f'{found.mean:+.3g}', interval, str(found.n), says, str(needed)])
    return header, lines
