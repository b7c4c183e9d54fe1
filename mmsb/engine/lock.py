"""Keeps two trainings out of one work dir, and records which run the work dir holds.

The first process of a training locks the file `run.lock` for as long as it lives; the kernel releases the lock with the
process, however it exits. The file describes the run as JSON, and remains when the run has ended.

Limits: two hosts see each other's lock only where their file system has locks for both (NFS does; some parallel file
systems need an option). Deleting the file or the work dir also removes the lock.
"""

import fcntl
import json
import os
import socket
import time
from pathlib import Path

FILE = 'run.lock'
WAIT_S = 10  # for a process that is exiting
_SIZE_BYTES = 512  # of the description: it is rewritten in one piece


class WorkDirLock:
    """The lock of a work dir.

    It is a POSIX record lock, which forked workers of a dataloader do not inherit. This process must not close another
    handle of the file while it holds the lock.

    Args:
        folder: the work dir.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder, FILE)
        self._file: int | None = None
        self.record: dict = {}  # of the run that the folder holds, from before this process took the lock

    def take(self, *, create: bool = False) -> None:
        """Take the lock, unless this process holds it; wait a moment for a process that is exiting.

        Args:
            create: whether to create the work dir and the file; without, a missing file means that nobody trains there.

        Raises:
            ValueError: another training writes to the work dir; one line that names it.
            OSError: the file cannot be written.
        """
        if self._file is not None or not (create or self._path.exists()):
            return
        if create:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        try:
            self._lock(file)
            self.record = _read(file)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def begin(self, run: str | None, launch: str | None) -> None:
        """Describe the run of this process in the file; call `take` before.

        Args:
            run: identity of the run.
            launch: what the launcher calls this start, with its restarts.
        """
        record = dict(run=run, launch=launch, host=socket.gethostname(), pid=os.getpid(), since=time.strftime('%F %T'))
        os.pwrite(self._file, json.dumps(record).ljust(_SIZE_BYTES - 1).encode() + b'\n', 0)
        os.fsync(self._file)

    def end(self) -> None:
        """Release the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lock(self, file: int) -> None:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):  # another process holds it
                if time.monotonic() > end:
                    raise ValueError(
                        f'work_dir {str(self._path.parent)!r} is in use by {_describe(_read(file))}: '
                        'wait for its end, stop it, or use another --work-dir'
                    ) from None
                time.sleep(0.2)
            except OSError:  # a file system without locks
                return


def _read(file: int) -> dict:
    try:
        record = json.loads(os.pread(file, _SIZE_BYTES, 0) or b'{}')
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _describe(record: dict) -> str:
    what = 'another training'
    if record:
        what += f' (host {record.get("host")}, process {record.get("pid")}, since {record.get("since")})'
    return what
