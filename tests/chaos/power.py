"""Power loss: the part of `campaign.py` that records the file operations of a save and replays what a disk may keep.

After each operation the power may fail. Then the disk holds what was synced: the content of a file after fsync of the
file, and the names in a folder after fsync of the folder. Of what was not synced it may hold all or nothing; of the
names, each change on its own.
"""

import builtins
import io
import itertools
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mmengine.hooks

from chaos.inject import SAVE_AT, Stream, die
from chaos.row import Row
from chaos.victim import train, write_config
from mmsb.checkpoints.store import first_valid, list_checkpoints

KEEP_ONE = ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
MAX_OPEN = 6  # changes of names that are tried in all combinations; beyond it, in their order only
Files = dict[str, bytes]  # content of each file of the work dir, by name


class Recorder:
    """Records the operations of the save at iteration 4 in a folder, and the files before it; then the victim dies.

    Args:
        folder: the work dir.
        path: file for the record, a pickle: the files before, and a list of operations (name, file, ...).
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder, self._path = str(folder.resolve()), path
        self._opened: dict[int, str] = {}  # paths of open handles
        self._operations: list[tuple] | None = None

    def install(self) -> None:
        """Watch the operations; call this in the victim."""
        upstream, open_file = mmengine.hooks.CheckpointHook._save_checkpoint, open

        def save(hook, runner) -> None:
            if runner.iter + 1 != SAVE_AT:
                upstream(hook, runner)
                return
            before = {path.name: path.read_bytes() for path in Path(self._folder).iterdir() if path.is_file()}
            self._operations = []
            upstream(hook, runner)
            with open_file(self._path, 'wb') as file:
                pickle.dump((before, self._operations), file)
            die()

        mmengine.hooks.CheckpointHook._save_checkpoint = save
        os.open = self._watched_handle(os.open)
        os.fsync = self._watched(os.fsync, 'fsync')
        os.replace = os.rename = self._watched(os.replace, 'rename')
        os.unlink = os.remove = self._watched(os.unlink, 'unlink')
        builtins.open = io.open = self._watched_open(open)  # pathlib uses the latter

    def _watched_handle(self, operation: Callable) -> Callable:
        def watched(path, *args, **kwargs) -> int:
            handle = operation(path, *args, **kwargs)
            self._opened[handle] = os.fspath(path)
            return handle

        return watched

    def _watched(self, operation: Callable, name: str) -> Callable:
        def watched(*args, **kwargs):
            operation(*args, **kwargs)
            paths = [self._opened[arg] if isinstance(arg, int) else arg for arg in args]
            self._note(name, *paths)

        return watched

    def _watched_open(self, open_file: Callable) -> Callable:
        def watched(file, mode='r', *args, **kwargs):
            stream = open_file(file, mode, *args, **kwargs)
            if self._operations is None or 'w' not in mode:
                return stream
            self._note('create', file)
            return _Recorded(stream, lambda content: self._note('write', file, content=content))

        return watched

    def _note(self, name: str, *paths, content: bytes | None = None) -> None:
        if self._operations is None:
            return
        full = [os.path.realpath(os.fspath(path)) for path in paths]
        if all(path == self._folder or os.path.dirname(path) == self._folder for path in full):
            names = ['' if path == self._folder else os.path.basename(path) for path in full]
            self._operations.append((name, *names, *([] if content is None else [content])))


class _Recorded(Stream):
    """A file open for writing whose writes are recorded, by the function in the place of the fault point."""

    def write(self, content) -> int:
        self._point(content.encode() if isinstance(content, str) else bytes(content))
        return self._stream.write(content)


class _Content:
    """The content of a file, wherever its name points: `now`, and what of it is `synced`."""

    def __init__(self, content: bytes = b'', *, synced: bool = False) -> None:
        self.now, self.synced = content, content if synced else b''


def after_power_loss(before: Files, operations: list[tuple]) -> Iterator[Files]:
    """Yield every state in which the folder may be found if the power fails after these operations."""
    names = {name: _Content(content, synced=True) for name, content in before.items()}
    durable, pending = dict(names), []  # names that are on disk, and the changes that may be
    for operation, name, *rest in operations:
        change = {}
        if operation == 'create':
            change = {name: _Content()}
        elif operation == 'write':
            names[name].now += rest[0]
        elif operation == 'rename':
            change = {name: None, rest[0]: names[name]}
        elif operation == 'unlink':
            change = {name: None}
        elif name:  # fsync of a file
            names[name].synced = names[name].now
        else:
            durable, pending = _changed(durable, pending), []
        if change:
            names = _changed(names, [change])
            pending.append(change)
    for changes in _kept(pending):
        there = _changed(durable, changes)
        yield {name: content.synced for name, content in there.items()}
        if any(content.synced != content.now for content in there.values()):
            yield {name: content.now for name, content in there.items()}


def _changed(names: dict, changes: list[dict]) -> dict:
    names = dict(names)
    for change in changes:
        names.update(change)
    return {name: content for name, content in names.items() if content is not None}


def _kept(pending: list[dict]) -> Iterator[list[dict]]:
    """Yield each set of changes that may have reached the disk, in their order."""
    if len(pending) > MAX_OPEN:
        yield from (pending[:count] for count in range(len(pending) + 1))
        return
    for kept in itertools.product((False, True), repeat=len(pending)):
        yield list(itertools.compress(pending, kept))


def power_loss(folder: Path, *, quick: bool) -> Row:
    """The power fails after any operation of a save; one checkpoint is kept."""
    row = Row(
        'power loss after each file operation of a save, with what was not synced kept or lost',
        'a valid checkpoint is found',
    )
    config = write_config(folder / 'power.py', interval=2, save_best=False)
    for flags in [()] if quick else [(), ('--stock-hooks',)]:
        work_dir, record = folder / 'power', folder / 'record'
        for path in (work_dir, record):
            shutil.rmtree(path, ignore_errors=True)
        record.unlink(missing_ok=True)
        train(folder, config, '--work-dir', work_dir, *flags, *KEEP_ONE, before=Recorder(work_dir, record).install)
        before, operations = pickle.loads(record.read_bytes())
        found = folder / 'found'
        for count in range(len(operations) + 1):
            for files in after_power_loss(before, operations[:count]):
                shutil.rmtree(found, ignore_errors=True)
                found.mkdir()
                for name, content in files.items():
                    (found / name).write_bytes(content)
                path, _ = first_valid(list_checkpoints([str(found)])[0])
                why = '' if path else f'none after {operations[count - 1][0] if count else "nothing"}'
                row.add(not why, why, stock=bool(flags))
    return row
