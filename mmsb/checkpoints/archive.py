"""Check what torch's reader does not check in a file of torch.save: damage, and pickles that never finish loading.

There are two formats: a zip since torch 1.6, and five consecutive pickles before that.
"""

import io
import os
import pickletools
import zipfile
from typing import BinaryIO

from mmsb.checkpoints.stand_ins import NotDataError, require

# a checkpoint of ResNet-152 with the state of AdamW has 76,000 operations and 0.3 million units of work
MAX_OPERATIONS, MAX_WORK = 2_000_000, 8_000_000
_PICKLES_IN_A_ROW = 5
_INTO_OWNER = {'APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'BUILD'}


def check(path: str | os.PathLike, *, work: bool = True, checksums: bool = True) -> bool:
    """Check the records of a file, and the work needed to load its pickles.

    Args:
        path: path of the file.
        work: whether to check the work.
        checksums: whether to verify the checksums of all records, which reads the whole file.

    Returns:
        whether the file is a zip.

    Raises:
        OSError: the file cannot be opened.
        Exception: of any type, if the file is damaged, is not a file of torch.save, or needs too much work.
    """
    with open(path, 'rb') as file:
        zipped = file.read(4) == b'PK\x03\x04'
        file.seek(0)
        if not zipped:
            for _ in range(_PICKLES_IN_A_ROW if work else 0):
                check_work(file)
            return False
        with zipfile.ZipFile(file) as archive:
            compressed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            require(not compressed, 'zip: compressed records, which torch.save does not write')
            damaged = archive.testzip() if checksums else None  # torch does not verify checksums
            require(damaged is None, f'it is damaged: the checksum of {damaged} is wrong')
            pickles = [name for name in archive.namelist() if name.endswith('data.pkl')]
            require(bool(pickles), 'zip: no data.pkl')
            for name in pickles if work else ():
                check_work(io.BytesIO(archive.read(name)))  # verifies the checksum of the pickle
    return True


def check_work(file: BinaryIO) -> None:
    """Check that the time to load one pickle is proportional to its length.

    References can make it longer: a tuple of two tuples of two tuples ... takes 2^depth steps to hash, and each copy of
    a long dict takes as many steps as the dict is long. So each value is assigned the number of its parts, counted
    recursively, and each operation costs the parts of the values that it pops.
    """
    stack: list[list[int] | None] = []  # number of parts of each value, shared by references; None is a mark
    memo: dict[int, list[int]] = {}
    work = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MAX_OPERATIONS or work > MAX_WORK:
            raise NotDataError('a pickle that takes far too much work')
        if operation.name in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
        elif operation.name in ('BINPUT', 'LONG_BINPUT'):
            memo[argument] = stack[-1]
        elif operation.name == 'MARK':
            stack.append(None)
        elif not operation.stack_before:
            stack.extend([1] for _ in operation.stack_after)
        else:
            taken = _take(stack, operation.stack_before)
            owner = taken.pop() if operation.name in _INTO_OWNER else [1]
            parts = sum(part[0] for part in taken if part is not None)
            owner[0] += parts
            work += parts
            stack.extend(owner for _ in operation.stack_after)


def _take(stack: list, kinds: list) -> list:
    """Pop the operands of an operation from a stack, the last value first; a slice is everything down to the mark."""
    taken = []
    for kind in reversed(kinds):
        if kind is not pickletools.stackslice:
            taken.append(stack.pop())
            continue
        while stack[-1] is not None:
            taken.append(stack.pop())
    return taken
