"""One training at a time writes to a work dir; a run that has ended, however it did, blocks nobody."""

import json
import os
import shutil
import signal
import socket
import threading
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
    assert 'waiting' not in again.said()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A work dir in which a process of another host trains, or did."""
    monkeypatch.setattr(lock, 'STALE_S', 2)
    work_dir = tmp_path / 'run'
    theirs = WorkDirLock(str(work_dir))
    theirs.take(create=True)
    with monkeypatch.context() as there:
        there.setattr(socket, 'gethostname', lambda: 'node7')
        theirs.begin('0123', None)
    theirs._fall_silent()
    os.close(theirs._file)
    return work_dir


def test_a_living_run_of_another_host_is_found_by_its_touches(elsewhere):
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(0.3):
            os.utime(elsewhere / 'run.lock')

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(ValueError, match=r'in use by another training \(host node7, process '):
            WorkDirLock(str(elsewhere)).take()
    finally:
        stop.set()
        thread.join()


def test_a_run_of_another_host_without_a_sign_of_life_is_replaced(elsewhere, capsys):
    mine = WorkDirLock(str(elsewhere))
    begun = time.monotonic()
    mine.take()
    assert time.monotonic() - begun >= 2
    assert 'replacing the lock of another training (host node7' in capsys.readouterr().out
    assert mine.record['run'] == '0123'


@pytest.mark.parametrize('way', ['ended', 'copied', 'unreadable'])
def test_nobody_waits_for_a_run_that_is_certainly_not_there(elsewhere, way, capsys):
    if way == 'ended':
        text = (elsewhere / 'run.lock').read_text()
        (elsewhere / 'run.lock').write_text(json.dumps({**json.loads(text), 'ended': True}))
    elif way == 'copied':
        shutil.move(elsewhere, elsewhere.with_name('original'))
        shutil.copytree(elsewhere.with_name('original'), elsewhere)
    else:
        (elsewhere / 'run.lock').write_text('\0' * 100)
    mine = WorkDirLock(str(elsewhere))
    mine.take()
    assert 'waiting' not in capsys.readouterr().out
    mine.begin('4567', 'a launch')
    mine.end()
    record = json.loads((elsewhere / 'run.lock').read_text())
    assert (record['run'], record['host'], record['ended']) == ('4567', socket.gethostname(), True)


def test_a_look_creates_nothing(tmp_path):
    WorkDirLock(str(tmp_path / 'none')).take()
    assert list(tmp_path.iterdir()) == []
