"""Decides where a training starts: at a checkpoint of its work dir, at a given one, or at the beginning.

A run has an identity, `run_id`: random, born when it starts at its beginning, kept by every resume. It stands in the
run's checkpoints and in the lock of the work dir.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmsb.checkpoints.load import load_checkpoint, require_file
from mmsb.checkpoints.store import Stored, first_valid, list_checkpoints, pointed_at, probe, set_aside, why_invalid

from . import resumed_settings
from .lock import WorkDirLock
from .processes import first_process_decides, is_restart
from .safety import filename_template, output_folders, saves_locally
from .stops import EXIT_NOT_SAVED, RunStopped

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LAUNCH = 'MMSB_LAUNCH'  # environment: what launch.sh calls a start, with its restarts


@dataclass
class Start:
    """Where a training starts.

    Args:
        path: the checkpoint to resume from, or None.
        run: identity of the run; None if it was begun by stock MMEngine or mmsb 0.1.
    """

    path: str | None
    run: str | None


class WorkDir:
    """The work dir of a training: what it holds, and who may write to it. Only the first process does anything.

    Use it as a context around the training, after `decide`.

    Args:
        cfg: the complete config.
    """

    def __init__(self, cfg: Config) -> None:
        self._cfg, self._lock = cfg, WorkDirLock(cfg.work_dir)
        self.start = Start(None, None)

    def decide(self, resume: str | None) -> None:
        """Decide where the training starts, and write it into the config.

        A process that torchrun has restarted goes on with its own run, whatever `resume` says. In a distributed run,
        the first process decides.

        Args:
            resume: 'auto' for the most advanced valid checkpoint of the work dir's run, if any; a path; None for what
                the config says.

        Raises:
            FileNotFoundError: the given checkpoint does not exist.
            ValueError: another training writes to the work dir; the given checkpoint is not valid; or there are
                checkpoints, and none can be taken.
        """
        cfg, resume = self._cfg, _wanted(self._cfg, resume)
        if resume is not None or is_restart():
            self.start = first_process_decides(cfg, lambda: self._decide(resume))
        _write_start(cfg, self.start.path)

    def _decide(self, resume: str | None) -> Start:
        self._lock.take()
        found = self._find(own=resume != 'auto') if resume == 'auto' or is_restart() else None
        path = found or (None if resume == 'auto' else resume)
        if path is None:
            return Start(None, None)
        if not found:
            reason = why_invalid(path)
            if reason:
                require_file(path)
                raise ValueError(f'checkpoint {path!r} {reason}')
        return Start(path, _run_of(path))

    def _find(self, *, own: bool) -> str | None:
        """Find the checkpoint to go on from; with `own`, only one of the run that this launch has started."""
        record = self._lock.record
        if own and os.environ.get(LAUNCH) and record.get('launch') != os.environ[LAUNCH]:
            return None
        cfg = self._cfg
        named = pointed_at(cfg.work_dir)
        if named and not saves_locally(cfg, named):  # in another store, and of the only run that is known to be there
            return named
        stored, skipped = list_checkpoints(output_folders(cfg), filename_template(cfg))
        run = record['run'] if 'run' in record else self._only_run(stored)
        path, damaged = first_valid([one for one in stored if one.run == run])
        skipped += damaged
        for line in skipped:
            print(f'skipped {line}', flush=True)
        if path:
            print(f'resuming from {path!r}', flush=True)
        elif skipped:
            raise ValueError(
                f'none of the {len(skipped)} checkpoints in {cfg.work_dir!r} is valid: {skipped[0]}; '
                'to start a new run, use another --work-dir'
            )
        elif stored and not own:
            raise ValueError(
                f'the checkpoints in {cfg.work_dir!r} are not from the run that last used this folder: resume from one '
                f'of them with --resume {stored[0].path}, or start a new run in another --work-dir'
            )
        return path

    def _only_run(self, stored: list[Stored]) -> str | None:
        """Return the run of the checkpoints in a folder without a record, which an older version has left."""
        runs = list(dict.fromkeys(one.run for one in stored))
        if len(runs) > 1:
            raise ValueError(
                f'the checkpoints in {self._cfg.work_dir!r} belong to {len(runs)} runs: resume from one of them with '
                f'--resume PATH, for example {stored[0].path}'
            )
        return runs[0] if runs else None

    def __enter__(self) -> Start:
        """Take the work dir, describe the run in it, and set aside the checkpoints that don't lead to its start."""
        self.start = first_process_decides(self._cfg, self._take)
        return self.start

    def _take(self) -> Start:
        start = self.start if self.start.path else Start(None, secrets.token_hex(8))
        cfg = self._cfg
        try:
            probe(cfg.work_dir, 0)
            self._lock.take(create=True)
            self._lock.begin(start.run, os.environ.get(LAUNCH))
            for path in set_aside(self._strangers(start)):
                print(f'set aside: {path}', flush=True)
        except OSError as error:
            raise RunStopped(f'work_dir {cfg.work_dir!r} cannot be written to: {error}', EXIT_NOT_SAVED) from error
        return start

    def __exit__(self, kind, error, traceback) -> None:
        work_dir = self._cfg.work_dir
        self._lock.end()  # only the first process has it
        file = getattr(error, 'filename', None)
        inside = isinstance(file, str) and Path(file).absolute().is_relative_to(Path(work_dir).absolute())
        if isinstance(error, OSError) and (inside or error.errno in NO_ROOM):
            raise RunStopped(f'work_dir {work_dir!r} cannot be written to: {error}', EXIT_NOT_SAVED) from error

    def _strangers(self, start: Start) -> list[str]:
        """List the checkpoints in the output folders of other runs and of another future of this run.

        A file that the config names is not listed: the training starts from it.
        """
        cfg = self._cfg
        stored, _ = list_checkpoints(output_folders(cfg), filename_template(cfg), best=True)
        done = int(load_checkpoint(start.path, keep=True)['meta']['iter']) if start.path else 0
        strange = [one.path for one in stored if one.run != start.run or one.iteration > done]
        named = {os.path.realpath(text) for text in _texts(cfg.to_dict())} if strange else set()
        return [path for path in strange if os.path.realpath(path) not in named]


def _texts(node) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _texts(child)


def _run_of(path: str) -> str | None:
    """Return the run that wrote a checkpoint.

    Raises:
        ValueError: it is no checkpoint of a training.
    """
    checkpoint = load_checkpoint(path, keep=True)
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict) or not {'iter', 'epoch'} <= {*meta}:
        raise ValueError(f'checkpoint {path!r} can only be loaded, not resumed from: it has no iteration and epoch')
    return str(meta['run_id']) if meta.get('run_id') else None


def decide_as_stock(cfg: Config, resume: str | None) -> None:
    """Write into a config the checkpoint that MMEngine would resume from, unvalidated; see `WorkDir.decide`."""
    if not cfg.get(resumed_settings.KEY, True):
        raise ValueError(f'{resumed_settings.KEY}=False needs mmsb.SafeRunner: leave out --stock-hooks')
    resume = _wanted(cfg, resume)
    found = pointed_at(cfg.work_dir) if resume == 'auto' or is_restart() else None
    _write_start(cfg, found or (None if resume == 'auto' else resume))


def _wanted(cfg: Config, resume: str | None) -> str | None:
    """Return what `--resume` asks for or, without it, the config: 'auto', a path, or None."""
    return cfg.get('load_from') or 'auto' if resume is None and cfg.get('resume') else resume


def _write_start(cfg: Config, path: str | None) -> None:
    cfg.resume = path is not None
    if cfg.resume:
        cfg.load_from = path
