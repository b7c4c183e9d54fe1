"""A disk failure loses no checkpoint, and the training reports what it could not write."""

import errno
import hashlib
import os
import signal

import torch
from chaos.inject import InSaves, at_iteration, die, raising
from chaos.victim import differing, train, weights_of, write_config

from mmsb.checkpoints import store
from mmsb.checkpoints.load import load_checkpoint
from mmsb.checkpoints.store import list_checkpoints, why_invalid
from mmsb.engine.checkpoint import CheckpointHook


def test_names_in_a_checkpoint_reach_no_other_files(arena):
    config = write_config(arena / 'config.py', steps=1, save_best=False)
    train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(5, die))
    checkpoint = load_checkpoint(arena / 'run/iter_4.pth')
    doomed = ['../iter_1.pth', str(arena / 'iter_1.pth'), 'notes.txt', 'notes.pth', 'iter_3.pth']
    checkpoint['message_hub']['runtime_info']['doomed_ckpts'] = doomed
    for name in ('iter_1.pth', 'run/notes.txt', 'run/notes.pth', 'run/iter_3.pth'):
        (arena / name).write_text('')
    torch.save(checkpoint, arena / 'forged.pth')
    resumed = train(arena, config, '--work-dir', 'run', '--resume', 'forged.pth')
    assert resumed.code == 0, resumed.said()
    for name in ('iter_1.pth', 'run/notes.txt', 'run/notes.pth'):
        assert (arena / name).exists()
    assert not (arena / 'run/iter_3.pth').exists()


def test_killed_in_a_save_with_one_checkpoint_kept(arena):
    config = write_config(arena / 'config.py', steps=1)
    one = ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
    whole = train(arena, config, '--work-dir', 'whole', *one)
    assert whole.code == 0, whole.said()
    assert [path.name for path in (arena / 'whole').glob('iter*.pth')] == ['iter_6.pth']
    assert (arena / 'whole/last_checkpoint').read_text() == str(arena / 'whole/iter_6.pth')
    killed = train(arena, config, '--work-dir', 'run', *one, before=InSaves(2).install)
    assert killed.code == -signal.SIGKILL
    assert list(arena.glob('run/.iter_4.pth.*.tmp'))
    resumed = train(arena, config, '--work-dir', 'run', '--resume', *one)
    assert resumed.code == 0, resumed.said()
    assert {path.name for path in (arena / 'run').glob('.*')} == set()
    assert differing(weights_of(arena / 'whole/iter_6.pth'), weights_of(arena / 'run/iter_6.pth')) == []


def test_a_full_disk_ends_no_run_and_loses_nothing(arena):
    config = write_config(arena / 'config.py', steps=1, save_best=False)
    one = ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
    for_a_while = train(arena, config, '--work-dir', 'while', *one, before=InSaves(2, raising(errno.ENOSPC)).install)
    assert for_a_while.code == 0, for_a_while.said()
    assert 'No space left on device; the last one, ' in for_a_while.said()
    assert [path.name for path in (arena / 'while').glob('iter*.pth')] == ['iter_6.pth']
    fault = InSaves(2, raising(errno.ENOSPC), lasting=True)
    for_good = train(arena, config, '--work-dir', 'good', *one, before=fault.install)
    assert for_good.code == 74, for_good.said()
    assert 'error: the last checkpoint could not be written: ' in for_good.said()
    assert [path.name for path in (arena / 'good').glob('iter*.pth')] == ['iter_2.pth']
    assert why_invalid(arena / 'good/iter_2.pth') is None


def test_the_best_one_outlives_a_disk_that_is_full(arena):
    def before() -> None:
        put, written = store.CheckpointBackend.put, []

        def put_the_first_best(self, content, path) -> None:
            if os.path.basename(path).startswith('best'):
                if written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written.append(path)
            put(self, content, path)

        store.CheckpointBackend.put = put_the_first_best
        CheckpointHook.rule_map = dict.fromkeys(('greater', 'less'), lambda *_: True)  # every value counts as better

    config = write_config(arena / 'config.py', steps=2)
    full = train(arena, config, '--work-dir', 'run', before=before)
    assert full.code == 74, full.said()
    assert 'error: the best checkpoint could not be written: ' in full.said().splitlines()[-1]
    assert {why_invalid(arena / f'run/iter_{number}.pth') for number in (8, 10, 12)} == {None}
    (best,) = (arena / 'run').glob('best*.pth')
    assert why_invalid(best) is None


def test_published_keys_alone_are_published(arena):
    config = write_config(arena / 'config.py', by_epoch=False, steps=1, save_best=False)
    keys = 'default_hooks.checkpoint.published_keys=[meta,state_dict]'
    done = train(arena, config, '--work-dir', 'run', '--cfg-options', keys, 'default_hooks.checkpoint.interval=1')
    assert done.code == 0, done.said()
    (published,) = (arena / 'run').glob('iter_1-*.pth')
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert published.name == f'iter_1-{digest[:8]}.pth'
    assert set(load_checkpoint(published)) == {'meta', 'state_dict'}
    assert [one.path for one in list_checkpoints([arena / 'run'])[0]] == [str(arena / 'run/iter_1.pth')]


def test_damaged_checkpoints_are_named_and_skipped(arena):
    config = write_config(arena / 'config.py', steps=1)
    train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(5, die))
    newest = arena / 'run/iter_4.pth'
    os.truncate(newest, 1000)
    resumed = train(arena, config, '--work-dir', 'run', '--resume', before=lambda: at_iteration(3, die))
    assert "iter_4.pth' does not match its .sha256: it is damaged" in resumed.said()
    assert 'resumed epoch: 0, iter: 2' in resumed.said()
    os.truncate(arena / 'run/iter_2.pth', 1000)
    none = train(arena, config, '--work-dir', 'run', '--resume')
    assert none.code == 1
    assert 'error: none of the 2 checkpoints' in none.said()
    asked = train(arena, config, '--work-dir', 'run', '--resume', newest)
    assert asked.code == 1
    assert 'it is damaged' in asked.said().splitlines()[-1]


def test_a_folder_without_space_stops_the_run_before_it_begins(arena):
    def full() -> None:
        store._reserve = raising(errno.ENOSPC)

    config = write_config(arena / 'config.py', steps=1)
    stopped = train(arena, config, '--work-dir', 'run', before=full)
    assert stopped.code == 74, stopped.said()
    assert 'does not take a checkpoint of about 1 MB' in stopped.said().splitlines()[-1]
    assert 'Epoch(train)' not in stopped.said()
    (arena / 'file').touch()
    nowhere = train(arena, config, '--work-dir', 'file/nowhere')
    assert nowhere.code == 74, nowhere.said()
    assert "error: work_dir 'file/nowhere' cannot be written to: " in nowhere.said().splitlines()[-1]
