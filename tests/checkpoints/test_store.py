"""Checkpoint files are written atomically, and the newest valid one is found."""

import errno
import io
import os
import shutil

import pytest
import torch
from chaos.inject import InSaves, die, raising

from mmsb.checkpoints.store import clean_leftovers, find_checkpoint, probe, why_invalid, write_checkpoint


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
