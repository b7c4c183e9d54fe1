"""What can't be logged ends no training: /dev/full answers each write as a full disk does."""

import json
import os

import mmpretrain.evaluation
import pytest
from chaos.inject import at_iteration
from chaos.victim import differing, train, weights_of, write_config
from mmengine.visualization import LocalVisBackend

FULL = '/dev/full'
pytestmark = pytest.mark.skipif(not os.path.exists(FULL), reason=f'the system has no {FULL}')


@pytest.fixture
def config(arena):
    return write_config(arena / 'config.py', steps=2, interval=3)


def _fill_log(runner) -> None:
    handle = os.open(FULL, os.O_WRONLY)
    for handler in runner.logger.handlers:
        if hasattr(handler, 'baseFilename'):
            os.dup2(handle, handler.stream.fileno())


def _fill_scalars(runner) -> None:
    (backend,) = runner.visualizer._vis_backends.values()
    path = backend._scalar_save_file
    os.remove(path)
    os.symlink(FULL, path)


@pytest.mark.parametrize(
    ('fill', 'what'), [(_fill_log, 'the log'), (_fill_scalars, 'what LocalVisBackend writes')], ids=['log', 'scalars']
)
def test_a_disk_that_is_full_for_a_writer_ends_no_run(arena, config, fill, what):
    whole = train(arena, config, '--work-dir', 'whole')
    assert whole.code == 0, whole.said()
    assert 'could not be written' not in whole.said()
    full = train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(2, fill))
    assert full.code == 0, full.said()
    assert full.said().count(f'{what} could not be written: [Errno 28] No space left on device; the run goes on') == 1
    assert 'Traceback' not in full.said()
    assert 'log entries could not be written' in full.said().splitlines()[-1]
    assert differing(weights_of(arena / 'whole/iter_12.pth'), weights_of(arena / 'run/iter_12.pth')) == []


def test_a_metric_that_cannot_write_ends_the_run(arena, config):
    def fill(_) -> None:
        def compute(self, results) -> dict:
            with open(FULL, 'w') as file:
                file.write('a table')

        mmpretrain.evaluation.Accuracy.compute_metrics = compute

    full = train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(0, fill, 'before_run'))
    assert full.code == 74, full.said()
    assert full.said().splitlines()[-1].endswith('[Errno 28] No space left on device')
    assert list((arena / 'run').glob('iter_*.pth'))


def test_a_line_of_scalars_is_written_whole_or_not_at_all(arena, config):
    def before() -> None:
        upstream = LocalVisBackend._dump

        def dump(self, value, path, file_format) -> None:
            upstream(self, value, path, file_format)
            if value.get('step') == 5:
                os.truncate(path, os.path.getsize(path) - 10)
                raise OSError(28, 'No space left on device')

        LocalVisBackend._dump = dump

    full = train(arena, config, '--work-dir', 'run', before=before)
    assert full.code == 0, full.said()
    (scalars,) = (arena / 'run').glob('2*/vis_data/scalars.json')
    steps = [json.loads(line)['step'] for line in scalars.read_text().splitlines()]
    assert 5 not in steps
    assert {4, 6} <= {*steps}


def test_a_disk_that_is_full_before_the_first_checkpoint_has_none(arena, config):
    def before() -> None:
        from mmsb.checkpoints import store

        def full(*_) -> None:
            raise OSError(28, 'No space left on device')

        store.write_checkpoint = full

    stopped = train(arena, config, '--work-dir', 'run', before=before)
    assert stopped.code == 74, stopped.said()
    assert 'No space left on device; there is none yet, and the run tries again' in stopped.said()
    assert 'None)' not in stopped.said()
