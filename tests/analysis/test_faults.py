"""Bad input never crashes or hangs a reader, and is named; the full campaign is `python -m mmsb.analysis.faults`."""

import os
import signal
import time

import pytest

from mmsb.analysis import faults


@pytest.mark.parametrize('seed', [1])
def test_malformed_images_and_annotations(seed):
    rows = faults.campaign(150, seed)
    assert sum(row['tried'] for row in rows) >= 300
    assert [row for row in rows if row['survived'] != row['tried']] == []
    assert all(row['named'] for row in rows)


def test_what_crashes_or_hangs_is_counted():
    def task(way: str) -> str:
        if way == 'crash':
            os.kill(os.getpid(), signal.SIGKILL)
        if way == 'hang':
            time.sleep(60)
        return faults.FINE

    found = faults.isolated(task, ['', 'crash', '', 'hang', ''], limit_s=1)
    assert list(found) == ['fine', 'crashed', 'fine', 'hung', 'fine']
