"""Bad input never crashes or hangs a reader, and the error names the file; `make chaos` runs the full campaign."""

import os
import signal
import time

import pytest

from chaos import bad_input


@pytest.mark.parametrize('seed', [1])
def test_malformed_images_and_annotations(seed):
    rows = bad_input.campaign(150, seed)
    assert sum(row['tried'] for row in rows) >= 300
    assert [row for row in rows if row['survived'] != row['tried']] == []
    assert all(row['named'] for row in rows)


def test_what_crashes_or_hangs_is_counted():
    def task(way: str) -> str:
        if way == 'crash':
            os.kill(os.getpid(), signal.SIGKILL)
        if way == 'hang':
            time.sleep(60)
        return bad_input.FINE

    found = bad_input.isolated(task, ['', 'crash', '', 'hang', ''], limit_s=1)
    assert list(found) == ['fine', 'crashed', 'fine', 'hung', 'fine']
