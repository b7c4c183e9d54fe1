"""Checkpoints are whole or not there, the newest valid one is found, and a disk that fails loses none."""

import errno
import hashlib
import io
import os
import shutil
import signal

import pytest
import torch
from chaos_faults import InSaves, at_iteration, die, raising
from chaos_victim import differing, train, weights_of, write_config

from mmsb.engine import checkpoint_file
from mmsb.engine.checkpoint import CheckpointHook
from mmsb.engine.checkpoint_file import clean_leftovers, find_checkpoint, probe, why_invalid, write_checkpoint
from mmsb.models.safe_load import load_checkpoint


def _content(value: int) -> bytes:
    stream = io.BytesIO()
    torch.save(dict(state_dict=dict(weight=torch.full((1000,), float(value)))), stream)
    return stream.getvalue()


def _inject(target: int, act) -> InSaves:
    fault = InSaves(target, act)
    fault.install()
    fault.counting = fault.saving = True
    return fault


def _count(path) -> int:
    """Number of operations of a replacement."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        fault = _inject(-1, die)
        write_checkpoint(path, _content(1))
        fault.counting = False
        os.write(writer, bytes([fault.count]))
        os._exit(0)
    os.wait()
    count = os.read(reader, 1)[0]
    os.close(reader)
    os.close(writer)
    return count


@pytest.mark.parametrize('fault', [die, raising(errno.ENOSPC), raising(errno.EIO), raising(errno.EROFS)])
@pytest.mark.parametrize('replaces', [True, False], ids=['replaces', 'new'])
def test_a_fault_at_any_operation_leaves_a_valid_checkpoint(tmp_path, monkeypatch, fault, replaces):
    monkeypatch.setattr(checkpoint_file, 'CHUNK_BYTES', 2000)
    write_checkpoint(tmp_path / 'iter_1.pth', _content(0))
    name = 'iter_1.pth' if replaces else 'iter_2.pth'
    copy = tmp_path / 'copy'
    shutil.copytree(tmp_path, copy)
    count = _count(copy / name)
    assert count > 15
    for target in range(count):
        folder = tmp_path / str(target)
        folder.mkdir()
        for old in ('iter_1.pth', 'iter_1.pth.sha256'):
            shutil.copy2(tmp_path / old, folder / old)
        child = os.fork()
        if child == 0:
            try:
                _inject(target, fault)
                write_checkpoint(folder / name, _content(1))
            except OSError as error:
                os._exit(error.errno)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        found, skipped = find_checkpoint([str(folder)])
        assert found is not None
        assert skipped == []
        assert why_invalid(folder / 'iter_1.pth') is None
        clean_leftovers(str(folder))
        there = {path.name for path in folder.iterdir()}
        assert there <= {'iter_1.pth', 'iter_1.pth.sha256', name, f'{name}.sha256'}


def test_the_hash_is_that_of_sha256sum(tmp_path):
    write_checkpoint(tmp_path / 'epoch_3.pth', b'abc')
    abc = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    assert (tmp_path / 'epoch_3.pth.sha256').read_text() == f'{abc}  epoch_3.pth\n'


@pytest.mark.parametrize('hashed', [True, False], ids=['with hash', 'of stock mmengine'])
def test_the_newest_valid_checkpoint_is_taken(tmp_path, hashed):
    for number in (1, 2, 10):
        write_checkpoint(tmp_path / f'iter_{number}.pth', _content(number))
        os.utime(tmp_path / f'iter_{number}.pth', (number, number))
    write_checkpoint(tmp_path / 'best_acc_iter_10.pth', _content(3))
    if not hashed:
        for path in tmp_path.glob('*.sha256'):
            path.unlink()
    assert find_checkpoint([str(tmp_path)]) == (str(tmp_path / 'iter_10.pth'), [])
    damaged = bytearray(_content(10))
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / 'iter_10.pth').write_bytes(damaged)
    (tmp_path / 'iter_2.pth').write_bytes(b'')
    os.utime(tmp_path / 'iter_2.pth', (2, 2))
    found, skipped = find_checkpoint([str(tmp_path)])
    assert found == str(tmp_path / 'iter_1.pth')
    assert ['damage' in line or 'cannot be read' in line for line in skipped] == [True, True]


def test_names_of_a_template_of_ones_own_are_found(tmp_path):
    for number in (1, 2):
        write_checkpoint(tmp_path / f'{number}-net.pth', _content(number))
        os.utime(tmp_path / f'{number}-net.pth', (number, number))
    assert find_checkpoint([str(tmp_path)]) == (None, [])
    assert find_checkpoint([str(tmp_path)], '{}-net.pth')[0] == str(tmp_path / '2-net.pth')
    assert find_checkpoint([str(tmp_path)], '{}-net.pth', since_s=3) == (None, [])


def test_a_folder_that_takes_no_checkpoint_is_found_out(tmp_path):
    probe(str(tmp_path), 1 << 20)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r'No space|too large|File too'):
        probe(str(tmp_path), 1 << 55)
    assert list(tmp_path.iterdir()) == []


def test_names_in_a_checkpoint_reach_no_other_files(arena):
    config = write_config(arena / 'config.py', steps=1, save_best=False)
    train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(5, die))
    checkpoint = load_checkpoint(arena / 'run/iter_4.pth')
    doomed = ['../outside.pth', str(arena / 'outside.pth'), 'notes.txt', 'inside.pth']
    checkpoint['message_hub']['runtime_info']['doomed_ckpts'] = doomed
    for name in ('outside.pth', 'run/notes.txt', 'run/inside.pth'):
        (arena / name).write_text('')
    torch.save(checkpoint, arena / 'forged.pth')
    resumed = train(arena, config, '--work-dir', 'run', '--resume', 'forged.pth')
    assert resumed.code == 0, resumed.said()
    assert (arena / 'outside.pth').exists()
    assert (arena / 'run/notes.txt').exists()
    assert not (arena / 'run/inside.pth').exists()


def test_killed_in_a_save_with_one_checkpoint_kept(arena):
    config = write_config(arena / 'config.py', steps=1)
    one = ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
    whole = train(arena, config, '--work-dir', 'whole', *one)
    assert whole.code == 0, whole.said()
    assert [path.name for path in (arena / 'whole').glob('iter*.pth')] == ['iter_6.pth']
    assert (arena / 'whole/last_checkpoint').read_text() == str(arena / 'whole/iter_6.pth')
    killed = train(arena, config, '--work-dir', 'run', *one, before=InSaves(2).install)
    assert killed.code == -signal.SIGKILL
    assert (arena / 'run/.iter_4.pth.tmp').exists()
    resumed = train(arena, config, '--work-dir', 'run', '--resume', *one)
    assert resumed.code == 0, resumed.said()
    assert {path.name for path in (arena / 'run').glob('.*')} == set()
    assert differing(weights_of(arena / 'whole/iter_6.pth'), weights_of(arena / 'run/iter_6.pth')) == []


def test_a_full_disk_ends_no_run_and_loses_nothing(arena):
    config = write_config(arena / 'config.py', steps=1, save_best=False)
    one = ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
    for_a_while = train(arena, config, '--work-dir', 'while', *one, before=InSaves(2, raising(errno.ENOSPC)).install)
    assert for_a_while.code == 0, for_a_while.said()
    assert 'No space left on device; the last one is still there' in for_a_while.said()
    assert [path.name for path in (arena / 'while').glob('iter*.pth')] == ['iter_6.pth']
    fault = InSaves(2, raising(errno.ENOSPC), lasting=True)
    for_good = train(arena, config, '--work-dir', 'good', *one, before=fault.install)
    assert for_good.code == 74, for_good.said()
    assert 'error: the last checkpoint could not be written: ' in for_good.said()
    assert [path.name for path in (arena / 'good').glob('iter*.pth')] == ['iter_2.pth']
    assert why_invalid(arena / 'good/iter_2.pth') is None


def test_the_best_one_outlives_a_disk_that_is_full(arena):
    def before() -> None:
        put, written = checkpoint_file.CheckpointBackend.put, []

        def put_the_first_best(self, content, path) -> None:
            if os.path.basename(path).startswith('best'):
                if written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written.append(path)
            put(self, content, path)

        checkpoint_file.CheckpointBackend.put = put_the_first_best
        CheckpointHook.rule_map = dict.fromkeys(('greater', 'less'), lambda *_: True)  # each one is better

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
    assert find_checkpoint([str(arena / 'run')])[0].endswith('iter_1.pth')


def test_damaged_checkpoints_are_named_and_skipped(arena):
    config = write_config(arena / 'config.py', steps=1)
    train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(5, die))
    newest = arena / 'run/iter_4.pth'
    os.truncate(newest, 1000)
    resumed = train(arena, config, '--work-dir', 'run', '--resume', before=lambda: at_iteration(3, die))
    assert "iter_4.pth' does not have the content that its .sha256 says" in resumed.said()
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
        os.posix_fallocate = raising(errno.ENOSPC)

    config = write_config(arena / 'config.py', steps=1)
    stopped = train(arena, config, '--work-dir', 'run', before=full)
    assert stopped.code == 74, stopped.said()
    assert 'does not take a checkpoint of about 1 MB' in stopped.said().splitlines()[-1]
    assert 'Epoch(train)' not in stopped.said()
    nowhere = train(arena, config, '--work-dir', '/proc/nowhere')
    assert nowhere.code == 74, nowhere.said()
    assert "error: work_dir '/proc/nowhere' takes no files: " in nowhere.said().splitlines()[-1]
