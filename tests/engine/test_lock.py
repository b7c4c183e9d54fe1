"""One training at a time writes to a work dir; a run that has ended, however it did, blocks nobody."""

import json
import signal
import socket
import time

import pytest
from chaos.inject import at_iteration, die
from chaos.victim import Victim, train, write_config

from mmsb.engine import lock
from mmsb.engine.lock import WorkDirLock


@pytest.fixture
def config(arena):
    return write_config(arena / 'config.py', by_epoch=False, steps=6, save_best=False)


def _wait_for(path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_training_is_refused_and_the_first_one_unharmed(arena, config):
    def pause() -> None:
        def wait(_) -> None:
            (arena / 'first is there').touch()
            _wait_for(arena / 'go on')

        at_iteration(3, wait)

    first = Victim(arena, config, '--work-dir', 'run', before=pause)
    _wait_for(arena / 'first is there')
    for options in ((), ('--resume',)):
        second = train(arena, config, '--work-dir', 'run', *options, before=lambda: setattr(lock, 'WAIT_S', 0))
        assert second.code == 1
        last = second.said().splitlines()[-1]
        assert f"work_dir 'run' is in use by another training (host {socket.gethostname()}, process {first.pid}" in last
        assert 'Epoch(train)' not in second.said()
    (arena / 'go on').touch()
    assert first.wait() == 0, first.said()
    assert [path.name for path in (arena / 'run').glob('*.log')] == []
    assert len(list((arena / 'run').glob('2*'))) == 1
    assert train(arena, config, '--work-dir', 'run').code == 0


def test_a_killed_training_blocks_nobody_though_its_workers_live(arena):
    config = write_config(arena / 'config.py', by_epoch=False, steps=6, workers=2, persistent=True)
    killed = train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(4, die))
    assert killed.code == -signal.SIGKILL
    again = train(arena, config, '--work-dir', 'run', '--resume', before=lambda: setattr(lock, 'WAIT_S', 0))
    assert again.code == 0, again.said()


@pytest.mark.parametrize(
    'content', [None, '\0' * 100, '[1]', json.dumps(dict(run='0123', host='node7', pid=1)).ljust(511)]
)
def test_a_run_that_has_ended_blocks_nobody(tmp_path, content):
    if content is not None:
        (tmp_path / 'run.lock').write_text(content)
    mine = WorkDirLock(str(tmp_path))
    mine.take(create=True)
    assert mine.record.get('run') == ('0123' if content and 'run' in content else None)
    mine.begin('4567', 'a launch')
    mine.end()
    record = json.loads((tmp_path / 'run.lock').read_text())
    assert (record['run'], record['launch'], record['host']) == ('4567', 'a launch', socket.gethostname())


def test_a_look_creates_nothing(tmp_path):
    WorkDirLock(str(tmp_path / 'none')).take()
    assert list(tmp_path.iterdir()) == []
