"""The checkpoint hook: keeps old checkpoints until the new one is on disk, and survives a full disk."""

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from mmengine.dist import all_gather_object, master_only
from mmengine.hooks import CheckpointHook as UpstreamCheckpointHook
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from mmsb.checkpoints.publish import publish
from mmsb.checkpoints.store import (
    OWN_BACKEND,
    POINTER,
    clean_leftovers,
    is_checkpoint_name,
    is_local,
    probe,
    remove_checkpoint,
)
from mmsb.files import write_text
from mmsb.options import one_line
from mmsb.registry import HOOKS

from .stops import EXIT_NOT_SAVED, RunStopped

_DOOMED = 'doomed_ckpts'  # in the message hub, and so in the checkpoint: the files that it replaces
_PASSING = 'passing_ckpts'  # saved on a signal, between two intervals: the next checkpoint replaces it
_OWN_STATE = ('last_ckpt', 'keep_ckpt_ids', 'best_ckpt_path', 'best_ckpt_path_dict')


@HOOKS.register_module(name='CheckpointHook')
class CheckpointHook(UpstreamCheckpointHook):
    """MMEngine's hook, with the same options, that never loses a checkpoint.

    A checkpoint that MMEngine's backend for local files would write is written atomically, with its SHA-256 in
    `NAME.pth.sha256`; other backends write in their own way. Older checkpoints are removed only after that, and
    `last_checkpoint` is replaced atomically. If a checkpoint can't be written, the run continues and tries again at the
    next interval; if the last one could not be written, the run ends with exit code 74. Before training, the hook
    checks that there is space for one checkpoint. Requires the runner `mmsb.SafeRunner`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._begun = False  # whether there is a training, and so a place for checkpoints
        self._local = True  # whether they are written by our own backend
        self._failure: str | None = None  # why the last checkpoint could not be written
        self._failure_of_best: str | None = None

    def before_train(self, runner: Runner) -> None:
        self._begun = True
        super().before_train(runner)
        self._local = is_local(self.out_dir, self.backend_args, self.file_client_args)
        if not self._local:
            return
        self.backend_args, self.file_client_args = OWN_BACKEND, None
        error = None
        if runner.rank == 0:
            try:
                for folder in {str(self.out_dir), runner.work_dir}:
                    for name in clean_leftovers(folder):
                        runner.logger.info(f'removed {name}, left by an interrupted run')
                self._remove_doomed(runner)
                probe(str(self.out_dir), self._estimate_bytes(runner))
            except OSError as problem:
                error = one_line(problem)
        error = all_gather_object(error)[0]
        if error:
            size = f'a checkpoint of about {self._estimate_bytes(runner) / 1e6:.0f} MB'
            raise RunStopped(f'{str(self.out_dir)!r} does not take {size}: {error}', EXIT_NOT_SAVED)

    def after_run(self, runner: Runner) -> None:
        for which, failure in (('last', self._failure), ('best', self._failure_of_best)):
            if failure:
                raise RunStopped(f'the {which} checkpoint could not be written: {failure}', EXIT_NOT_SAVED)

    def save_now(self, runner: Runner, iteration: int) -> str:
        """Save a checkpoint now, whatever the interval.

        Args:
            runner: the runner of the training.
            iteration: number of completed iterations.

        Returns:
            The path of the checkpoint.

        Raises:
            RunStopped: the checkpoint could not be written.
        """
        meta = dict(epoch=runner.epoch, iter=iteration)
        if self.by_epoch:
            template, self.filename_tmpl = self.filename_tmpl, 'iter_{}.pth'
            try:
                self._save(runner, iteration, meta, passing=True)
            finally:
                self.filename_tmpl = template
        elif runner.message_hub.get_info('last_ckpt') != self._path(iteration):
            self._save(runner, iteration, meta)
        if self._failure:
            raise RunStopped(f'the run was asked to stop, but could not be saved: {self._failure}', EXIT_NOT_SAVED)
        return str(self.last_ckpt)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self._save(runner, step, meta)

    def _save(self, runner: Runner, step: int, meta: dict, *, passing: bool = False) -> None:
        with self._undone_on_failure(runner) as outcome:
            self._plan_removals(runner, step, passing=passing)
            self.last_ckpt = self._path(step)
            runner.message_hub.update_info('last_ckpt', self.last_ckpt)
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        self._failure = outcome.get('failure')
        if self._failure is None and runner.rank == 0:
            try:
                write_text(os.path.join(runner.work_dir, POINTER), self._pointer())
            except OSError as error:  # resuming does not need it: the newest valid file is found without it
                runner.logger.warning(f'{POINTER} could not be written: {error}')
            self._remove_doomed(runner)
        if self._failure is None:
            runner.message_hub.update_info(_DOOMED, [])

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self._begun:  # `runner.val()` alone
            return
        missing = [key for key in getattr(self, 'key_indicators', ()) if key not in (*metrics, 'auto')]
        if missing:
            runner.logger.warning(f'no best checkpoint is chosen: there is no {missing[0]}')
            return
        backend, self.file_backend = self.file_backend, _Postponing(self.file_backend)
        before = self._best()
        try:
            with self._undone_on_failure(runner) as outcome:
                super()._save_best_checkpoint(runner, metrics)
            doomed = self.file_backend.doomed
        finally:
            self.file_backend = backend
        if outcome or self._best() != before:
            self._failure_of_best = outcome.get('failure')
        if not outcome and self._failure is None:
            for path in doomed:
                if path not in self._best():
                    self._remove(runner, os.path.basename(path))

    def _best(self) -> set:
        return {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        """Write a checkpoint with only the `published_keys`, named as upstream does, but atomically."""
        if self._local:
            path = publish(ckpt_path, self.published_keys)
        else:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder, os.path.basename(ckpt_path))
                copy.write_bytes(self.file_backend.get(ckpt_path))
                published = Path(publish(str(copy), self.published_keys))
                path = self.file_backend.join_path(self.out_dir, published.name)
                self.file_backend.put(published.read_bytes(), path)
        runner.logger.info(f'wrote the published keys of {ckpt_path} to {path}')

    def _pointer(self) -> str:
        return os.path.abspath(self.last_ckpt) if self._local else str(self.last_ckpt)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _plan_removals(self, runner: Runner, step: int, *, passing: bool) -> None:
        """Record in the checkpoint which files it replaces; they go once it is written, or on resuming from it."""
        info = runner.message_hub
        name = self.filename_tmpl.format(step)
        doomed = [*info.get_info(_DOOMED, []), *info.get_info(_PASSING, [])]
        info.update_info(_PASSING, [name] if passing else [])
        if self.max_keep_ckpts > 0 and not passing:
            kept = [*(kept for kept in self.keep_ckpt_ids if kept != step), step]
            doomed += [self.filename_tmpl.format(old) for old in kept[: -self.max_keep_ckpts]]
            self.keep_ckpt_ids = deque(kept[-self.max_keep_ckpts :], self.max_keep_ckpts)
            info.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        info.update_info(_DOOMED, [old for old in doomed if old != name])

    def _remove_doomed(self, runner: Runner) -> None:
        kept = {self.filename_tmpl.format(step) for step in getattr(self, 'keep_ckpt_ids', ())}
        for name in runner.message_hub.get_info(_DOOMED, []):
            if name not in kept:
                self._remove(runner, os.path.basename(str(name)))

    def _remove(self, runner: Runner, name: str) -> None:
        if runner.rank != 0 or not self._may_remove(name):
            return
        backend = self.file_backend
        path = backend.join_path(self.out_dir, name)
        try:
            if self._local:
                remove_checkpoint(path)
            elif backend.isfile(path):
                backend.remove(path)
            elif backend.isdir(path):  # of DeepSpeed
                backend.rmtree(path)
        except Exception as error:  # of any backend
            runner.logger.warning(f'{path} could not be removed: {one_line(error)}')

    def _may_remove(self, name: str) -> bool:
        """Return whether a name, which may come from a checkpoint, is that of a checkpoint."""
        return is_checkpoint_name(name, self.filename_tmpl, best=True)

    @contextlib.contextmanager
    def _undone_on_failure(self, runner: Runner) -> Iterator[dict]:
        """Undo the bookkeeping of a checkpoint that can't be written; the yielded dict then holds the failure."""
        info = runner.message_hub.runtime_info
        before = dict(info)
        own = {name: getattr(self, name) for name in _OWN_STATE if hasattr(self, name)}
        own = {name: value.copy() if hasattr(value, 'copy') else value for name, value in own.items()}
        outcome = {}
        try:
            yield outcome
        except OSError as error:
            outcome['failure'] = one_line(error)
            for name, value in own.items():
                setattr(self, name, value)
            info.clear()
            info.update(before)
            last = f'the last one, {self.last_ckpt}, is still there' if self.last_ckpt else 'there is none yet'
            runner.logger.error(
                f'the checkpoint could not be written: {error}; {last}, and the run tries again at the next interval'
            )

    def _estimate_bytes(self, runner: Runner) -> int:
        """Estimate the size of a checkpoint: the weights, two optimizer moments each, and any moving averages."""
        model = runner.model
        weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        trained = sum(value.numel() * value.element_size() for value in model.parameters() if value.requires_grad)
        averaged = weights * sum(isinstance(hook, EMAHook) for hook in runner.hooks)
        return weights + averaged + (2 * trained if self.save_optimizer else 0) + (1 << 20)


class _Postponing:
    """A file backend that records what it is asked to remove, instead of removing it."""

    def __init__(self, backend) -> None:
        self._backend = backend
        self.doomed: list[str] = []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.doomed.append(path)

    rmtree = remove
