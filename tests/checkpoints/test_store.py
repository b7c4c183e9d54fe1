"""Checkpoint files are written atomically, and the newest valid one is found."""

import errno
import io
import os
import shutil

import pytest
import torch
from chaos.inject import InSaves, die, raising

from mmsb.checkpoints import store
from mmsb.checkpoints.store import (
    clean_leftovers,
    first_valid,
    list_checkpoints,
    probe,
    set_aside,
    why_invalid,
    write_checkpoint,
)


def _content(value: int, run: str | None = None) -> bytes:
    stream = io.BytesIO()
    meta = dict(iter=value, epoch=0, run_id=run)
    torch.save(dict(state_dict=dict(weight=torch.full((1000,), float(value))), meta=meta), stream)
    return stream.getvalue()


def _inject(target: int, act) -> InSaves:
    fault = InSaves(target, act)
    fault.install()
    fault.counting = fault.saving = True
    return fault


def _count(path) -> int:
    """Number of disk operations in a replacement."""
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
@pytest.mark.parametrize('replaces', ['ours', "stock mmengine's", ''])
def test_a_fault_at_any_operation_leaves_a_valid_checkpoint(tmp_path, fault, replaces):
    write_checkpoint(tmp_path / 'iter_1.pth', _content(0))
    if replaces == "stock mmengine's":
        (tmp_path / 'iter_1.pth.sha256').unlink()
    name = 'iter_1.pth' if replaces else 'iter_2.pth'
    copy = tmp_path / 'copy'
    shutil.copytree(tmp_path, copy)
    count = _count(copy / name)
    assert count > 15
    for target in range(count):
        folder = tmp_path / str(target)
        folder.mkdir()
        for old in tmp_path.glob('iter_1.pth*'):
            shutil.copy2(old, folder / old.name)
        child = os.fork()
        if child == 0:
            try:
                _inject(target, fault)
                write_checkpoint(folder / name, _content(1))
            except OSError as error:
                os._exit(error.errno)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        stored, unreadable = list_checkpoints([str(folder)])
        found, skipped = first_valid(stored)
        assert found is not None
        assert [*unreadable, *skipped] == []
        assert why_invalid(folder / 'iter_1.pth') is None
        clean_leftovers(str(folder))
        there = {path.name for path in folder.iterdir()}
        assert there <= {'iter_1.pth', 'iter_1.pth.sha256', name, f'{name}.sha256'}


def test_the_hash_is_that_of_sha256sum(tmp_path):
    write_checkpoint(tmp_path / 'epoch_3.pth', b'abc')
    abc = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    assert (tmp_path / 'epoch_3.pth.sha256').read_text() == f'{abc}  epoch_3.pth\n'


@pytest.mark.parametrize('hashed', [True, False], ids=['with hash', 'of stock mmengine'])
def test_the_most_advanced_valid_checkpoint_is_taken(tmp_path, hashed):
    for number in (1, 2, 10):
        write_checkpoint(tmp_path / f'iter_{number}.pth', _content(number))
        os.utime(tmp_path / f'iter_{number}.pth', (100 - number, 100 - number))
    write_checkpoint(tmp_path / 'iter_99.pth', _content(2))
    write_checkpoint(tmp_path / 'best_acc_iter_10.pth', _content(11))
    if not hashed:
        for path in tmp_path.glob('*.sha256'):
            path.unlink()
    stored, unreadable = list_checkpoints([str(tmp_path)])
    assert [one.iteration for one in stored] == [10, 2, 2, 1]
    assert (first_valid(stored), unreadable) == ((str(tmp_path / 'iter_10.pth'), []), [])
    damaged = bytearray(_content(10))
    damaged[damaged.index(torch.full((10,), 10.0).numpy().tobytes())] ^= 1
    (tmp_path / 'iter_10.pth').write_bytes(damaged)
    for number in (2, 99):
        (tmp_path / f'iter_{number}.pth').write_bytes(b'')
    (tmp_path / 'iter_12.pth').symlink_to('nowhere')
    stored, unreadable = list_checkpoints([str(tmp_path)])
    found, skipped = first_valid(stored)
    assert found == str(tmp_path / 'iter_1.pth')
    assert ['damage' in line for line in skipped] == [True]
    assert sorted(line.split("' ")[0].split('_')[-1] for line in unreadable) == ['12.pth', '2.pth', '99.pth']


def test_names_of_a_template_of_ones_own_are_found(tmp_path):
    for number in (1, 2):
        write_checkpoint(tmp_path / f'{number}-net.pt', _content(number))
    write_checkpoint(tmp_path / 'best_acc_2-net.pt', _content(2))
    (tmp_path / 'epoch_3.pth').mkdir()
    assert list_checkpoints([str(tmp_path)]) == ([], [])
    assert [one.iteration for one in list_checkpoints([str(tmp_path)], '{}-net.pt')[0]] == [2, 1]
    assert len(list_checkpoints([str(tmp_path)], '{}-net.pt', best=True)[0]) == 3


def test_what_is_set_aside_is_kept_with_its_hash(tmp_path):
    for content in (1, 2):
        write_checkpoint(tmp_path / 'iter_1.pth', _content(content))
        set_aside([str(tmp_path / 'iter_1.pth')])
    kept = [tmp_path / name / 'iter_1.pth' for name in ('set_aside', 'set_aside_2')]
    assert [torch.load(path)['meta']['iter'] for path in kept] == [1, 2]
    assert {why_invalid(path) for path in kept} == {None}
    assert all(path.with_name('iter_1.pth.sha256').exists() for path in kept)
    assert list(tmp_path.glob('iter*')) == []


def test_a_folder_that_takes_no_checkpoint_is_found_out(tmp_path):
    probe(str(tmp_path), 1 << 20)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r'No space|too large|File too'):
        probe(str(tmp_path), 1 << 55)
    assert list(tmp_path.iterdir()) == []


def test_where_no_space_can_be_reserved_the_free_space_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(store, '_reserve', lambda *_: False)
    monkeypatch.setattr(os, 'posix_fallocate', raising(errno.EIO))
    probe(str(tmp_path), 1 << 20)
    with pytest.raises(OSError, match='No space'):
        probe(str(tmp_path), 1 << 55)
