"""Keeps two trainings out of one work dir, and records which run the work dir holds.

The first process of a training holds a lock on the file `run.lock` for as long as it lives. The file describes the run
as JSON; it stays when the run has ended. On the same host, the kernel releases the lock with the process, however it
ends. Other hosts may not see the lock, so the process also touches the file every few seconds.

Limits: a process on another host that is suspended for longer than `STALE_S` counts as ended; and who deletes the file
or the work dir deletes the lock with it.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

FILE = 'run.lock'
BEAT_S, STALE_S = 4, 20  # between two touches; without one for so long, a process on another host has ended
WAIT_S = 10  # for a process that is ending
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
        self._touching: threading.Thread | None = None
        self._ended = threading.Event()
        self.record: dict = {}  # of the run that the folder holds, from before this process took the lock

    def take(self, *, create: bool = False) -> None:
        """Take the lock, unless this process holds it; wait a moment for a process that is ending.

        Args:
            create: whether to create the work dir and the file; without, a missing file means that nobody trains there.

        Raises:
            ValueError: another training writes to the work dir; one line that names it.
            OSError: the file can't be written.
        """
        if self._file is not None or not (create or self._path.exists()):
            return
        if create:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        try:
            locked = self._lock(file)
            self.record = _read(file)
            if not locked or self.record.get('host') != socket.gethostname():
                self._watch(file)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def begin(self, run: str | None, launch: str | None) -> None:
        """Describe the run of this process in the file, and keep touching it; call `take` before.

        Args:
            run: identity of the run.
            launch: what the launcher calls this start, with its restarts.
        """
        record = dict(run=run, launch=launch, host=socket.gethostname(), pid=os.getpid(), since=time.strftime('%F %T'))
        self._write(record)
        self._touching = threading.Thread(target=self._touch, daemon=True)
        self._touching.start()

    def end(self) -> None:
        """Note in the file that the run has ended, so that no other host waits for a sign of life."""
        if self._file is not None:
            self._fall_silent()
            self._write({**_read(self._file), 'ended': True})
            os.close(self._file)
            self._file = None

    def _lock(self, file: int) -> bool:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except (BlockingIOError, PermissionError):  # another process holds it
                if time.monotonic() > end:
                    raise self._refusal(_read(file)) from None
                time.sleep(0.2)
            except OSError:  # a file system without locks
                return False

    def _watch(self, file: int) -> None:
        """Wait until a run that the kernel can't tell of has shown no sign of life for long enough.

        The clocks of two hosts may differ, so the time of the file is only compared with itself.
        """
        record = self.record
        copied = record.get('inode') != os.fstat(file).st_ino  # the folder is a copy
        if not record or record.get('ended') or copied:
            return
        print(f'waiting {STALE_S} s for a sign of life of {_describe(record)}', flush=True)
        before, end = os.stat(self._path).st_mtime_ns, time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(0.5)
            if os.stat(self._path).st_mtime_ns != before:
                raise self._refusal(record)
        print(f'replacing the lock of {_describe(record)}, which has ended without a word', flush=True)

    def _refusal(self, record: dict) -> ValueError:
        return ValueError(
            f'work_dir {str(self._path.parent)!r} is in use by {_describe(record)}: '
            'wait for its end, stop it, or use another --work-dir'
        )

    def _write(self, record: dict) -> None:
        record = {**record, 'inode': os.fstat(self._file).st_ino}
        os.pwrite(self._file, json.dumps(record).ljust(_SIZE_BYTES - 1).encode() + b'\n', 0)
        os.fsync(self._file)

    def _touch(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # the next one may succeed
                os.utime(self._file)

    def _fall_silent(self) -> None:
        """Stop the touches before the file is closed: its number may soon belong to another file."""
        self._ended.set()
        if self._touching is not None:
            self._touching.join()


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
