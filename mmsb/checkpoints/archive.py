"""What torch's reader does not check in a file of torch.save: damage, and pickles that take for ever.

Two formats: the zip of torch 1.6 and later, and five pickles in a row before it.
"""

import io
import os
import pickletools
import zipfile
from typing import BinaryIO

from mmsb.checkpoints.stand_ins import require

MAX_WORK = 4_000_000  # a checkpoint of ResNet-152 with the state of AdamW takes 0.4 million
_PICKLES_IN_A_ROW = 5
_INTO_OWNER = {'APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'BUILD'}


def check(path: str | os.PathLike, *, work: bool = True) -> None:
    """Check the records of a file, and the work that its pickles take.

    Args:
        path: of the file.
        work: whether the latter is checked.

    Raises:
        OSError: it can't be opened.
        Exception: of any kind, if it is damaged, no file of torch.save, or takes too much work.
    """
    with open(path, 'rb') as file:
        zipped = file.read(4) == b'PK\x03\x04'
        file.seek(0)
        if not zipped:
            for _ in range(_PICKLES_IN_A_ROW if work else 0):
                check_work(file)
            return
        with zipfile.ZipFile(file) as archive:
            compressed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            require(not compressed, 'zip: compressed records, which torch.save does not write')
            damaged = archive.testzip()  # torch compares no checksums
            require(damaged is None, f'it is damaged: the checksum of {damaged} is wrong')
            pickles = [name for name in archive.namelist() if name.endswith('data.pkl')]
            require(bool(pickles), 'zip: no data.pkl')
            for name in pickles if work else ():
                check_work(io.BytesIO(archive.read(name)))


def check_work(file: BinaryIO) -> None:
    """Check that one pickle is read in a time that is in proportion to its length.

    References make it longer: a tuple of two tuples of two tuples ... takes 2^depth steps to hash, and copies of a long
    dict the length of the dict each. So each value counts its parts, those of its parts included, and an operation
    counts the parts that it takes.
    """
    stack: list[list[int] | None] = []  # of each value the number of its parts, shared by references; None: a mark
    memo: dict[int, list[int]] = {}
    work = 0
    for operation, argument, _ in pickletools.genops(file):
        work += 1
        require(work <= MAX_WORK, 'a pickle that takes far too much work')
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
    """Take off a stack what an operation takes, the last value first: a slice is all down to the mark."""
    taken = []
    for kind in reversed(kinds):
        if kind is not pickletools.stackslice:
            taken.append(stack.pop())
            continue
        while stack[-1] is not None:
            taken.append(stack.pop())
    return taken
