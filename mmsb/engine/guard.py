"""Stops a training cleanly: on a loss or gradient that is not finite, or on a signal."""

import contextlib
import functools
import math
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from mmsb.options import positive_integer
from mmsb.registry import HOOKS

from .checkpoint import CheckpointHook
from .exact_data import ExactDataLoader
from .handlers import SignalNotes
from .loops import ResumableMixin
from .runner import SafeRunner
from .stops import EXIT_NOT_FINITE, EXIT_PREEMPTED, SIGNALS, RunStopped
from .turns import averages

TIMEOUT_S = 1800
_BAD = 1 << 10  # what a process tells the others instead of the number of a signal: it has found a bad value


@dataclass
class _Place:
    """Where a value was computed: the batch without its pixels, and the last checkpoint before."""

    iteration: int
    epoch: int
    in_step: bool  # else in the backward pass
    indices: list | None  # if known
    samples: list
    last: str | None


@HOOKS.register_module()
class GuardHook(Hook):
    """Stop before a step whose loss or gradient is NaN or infinite; on a signal, save and stop.

    On a GPU, the loss and the gradient are read an iteration later, so that the processor never waits for the GPU. The
    step has been taken then, but no checkpoint holds it. In a distributed run, the process that finds a bad value takes
    no more steps, and all stop together: before a checkpoint or a validation, or at the end of the next iteration.

    A dynamic loss scaler finds its scale by running into infinite gradients: it skips such a step, and the run stops
    only after many skipped steps in a row.

    A signal takes effect at the end of a training iteration or validation batch, the same one in all processes. If the
    processes validate on different numbers of batches, a signal during validation stops them without saving a new
    checkpoint. The handlers that were there before are back when the training has ended, by any road; a signal that
    came too late to stop it goes to them. Outside of the main thread, Python has no handlers, and a training none.

    Args:
        finite: whether to check losses and gradients.
        max_skipped_steps: number of steps that a loss scaler may skip in a row.
        signals: names of the signals to handle.
    """

    priority = 'LOWEST'  # run after the checkpoint hook in the same iteration

    def __init__(self, *, finite: bool = True, max_skipped_steps: int = 20, signals: tuple[str, ...] = SIGNALS) -> None:
        self.finite, self.signals = finite, tuple(signals)
        self.max_skipped_steps = positive_integer('max_skipped_steps', max_skipped_steps)
        self.begun = False  # whether there has been a training, and so whether the signals have been this hook's
        self._training = False
        self._notes = SignalNotes(self.signals)
        self._bad: tuple[int, bool, int, str] | None = None  # iteration, whether in the step, process, what was found
        self._skipped = 0
        self._arriving: deque = deque()  # iteration, number, its judge, where it was
        self._batch = None
        self._loop: BaseLoop | None = None
        self._undo = contextlib.ExitStack()  # what is undone at the end of the training
        self._group = None  # all processes of a distributed run
        self._validates_together = False
        self._asked = None  # the pending all-reduce: has any process received a signal, or found a bad value?

    def before_run(self, runner: Runner) -> None:
        """Enclose the training loop: after an error, no hook is called."""
        loop = runner._train_loop
        if isinstance(loop, BaseLoop) and loop is not self._loop:
            self._loop, loop.run = loop, functools.partial(self._run, loop.run)

    def _run(self, run: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        try:
            model = run()
        except Exception as error:
            if self._bad is not None and not isinstance(error, RunStopped):  # it may follow from that value
                raise RunStopped(self._bad[-1], EXIT_NOT_FINITE) from error
            raise
        finally:
            late = self._notes.end()
            self._training, self._bad, self._asked = False, None, None
            self._arriving.clear()
            self._undo.close()
        if late is not None:
            signal.raise_signal(late)
        return model

    def before_train(self, runner: Runner) -> None:
        self._training = True
        if not self._notes.begin():
            runner.logger.warning(f'{" and ".join(self.signals)} will not be handled: this is not the main thread')
        self.begun = True
        if runner.world_size > 1:
            seconds = ((runner.cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout') or TIMEOUT_S
            self._group = torch.distributed.new_group(backend='gloo', timeout=timedelta(seconds=seconds))
        if self.finite:
            wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', {'': runner.optim_wrapper})
            for wrapper in wrappers.values():
                self._watch(runner, wrapper)

    def after_train(self, runner: Runner) -> None:
        if self._asked is not None:
            self._asked[0].wait()
        self._agree(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._batch = data_batch

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._batch = None
        self._look(runner, runner.iter)  # the GPU still works on this iteration
        if self._told_to_stop(runner):
            self._stop(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        if self._group is not None:
            self._agree(runner)
            counts = all_gather_object(len(getattr(runner.val_loop, 'dataloader', ())))
            self._validates_together = len({*counts}) == 1 and counts[0] > 0

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self._training:
            return
        if self._group is not None and not self._validates_together:
            if self._notes.got is None:
                return
            text = f'stopped by {self._notes.name} during the validation at iteration {runner.iter}'
            raise RunStopped(f'{text}: --resume goes on from the last checkpoint', EXIT_PREEMPTED)
        if not self._told_to_stop(runner):
            return
        if not isinstance(runner, SafeRunner):  # which does so itself
            for hook in averages(runner):
                hook._swap_ema_parameters()
        self._stop(runner, runner.iter)

    def _told_to_stop(self, runner: Runner) -> bool:
        """Return whether any process has received a signal; stop if any has found a bad value.

        In a distributed run the answer lags by one iteration or batch: the all-reduce that starts at the end of one is
        awaited at the end of the next, so that no process waits for the network.
        """
        if self._group is None:
            return self._notes.got is not None
        told, self._asked = self._answer(), None
        if told == _BAD:
            self._agree(runner)
        if told:
            self._notes.got = told
            return True
        flag = torch.tensor([_BAD if self._bad else self._notes.got or 0], dtype=torch.int32)
        self._asked = (
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True),
            flag,
        )
        return False

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        work, flag = self._asked
        work.wait()
        return int(flag)

    def _agree(self, runner: Runner) -> None:
        """Stop all processes if any has found a bad value; all must call this."""
        self._look(runner)
        if self._group is None:
            return
        found = [None] * runner.world_size
        torch.distributed.all_gather_object(found, self._bad, group=self._group)
        first = min((bad for bad in found if bad is not None), default=None)
        if first is not None:
            raise RunStopped(first[-1], EXIT_NOT_FINITE)

    def _stop(self, runner: Runner, iteration: int) -> None:
        text = f'stopped by {self._notes.name} after iteration {iteration}'
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        if hook is None:
            raise RunStopped(f'{text}; not saved: the config has no mmsb.CheckpointHook', EXIT_PREEMPTED)
        path = hook.save_now(runner, iteration)
        raise RunStopped(f'{text}: saved {path}, and --resume goes on from there', EXIT_PREEMPTED)

    def _watch(self, runner: Runner, wrapper: OptimWrapper) -> None:
        """Check between backward and step, where no hook is called."""
        backward, step = wrapper.backward, wrapper.step
        scaler = getattr(wrapper, 'loss_scaler', None)

        @functools.wraps(backward)
        def watched_backward(loss: Tensor, **kwargs) -> None:
            backward(loss, **kwargs)  # before the check: the other processes wait for these gradients
            self._judge(runner, loss.detach().float().sum(), self._require_finite('the loss is {}'))

        @functools.wraps(step)
        def watched_step(**kwargs) -> None:
            scaled = scaler is not None and scaler.is_enabled()
            norm = None if scaled else _gradient_norm(wrapper)
            if norm is not None:
                self._judge(runner, norm, self._require_finite('the norm of the gradient is {}'), in_step=True)
            if self._bad is not None:
                return
            scale = scaler._scale.clone() if scaled else None  # get_scale() would wait for the GPU
            step(**kwargs)
            if scaled:
                skipped = torch.where(scaler._scale < scale, scale, -1.0)
                self._judge(runner, skipped, self._count_skipped, in_step=True)

        wrapper.backward, wrapper.step = watched_backward, watched_step
        self._undo.callback(setattr, wrapper, 'backward', backward)
        self._undo.callback(setattr, wrapper, 'step', step)

    def _require_finite(self, text: str) -> Callable[[float], str]:
        return lambda value: '' if math.isfinite(value) else text.format(value)

    def _count_skipped(self, scale: float) -> str:
        """Count a step that the loss scaler skipped at this scale; a negative one means that it was not skipped."""
        self._skipped = self._skipped + 1 if scale > 0 else 0
        if self._skipped <= self.max_skipped_steps:
            return ''
        return f'the gradient was not finite {self._skipped} times in a row, down to a loss scale of {scale}'

    def _judge(self, runner: Runner, value: Tensor, judge: Callable[[float], str], *, in_step: bool = False) -> None:
        """Stop the run if `judge` finds something wrong with a value: at once, or after it has arrived from the GPU."""
        if _is_on_gpu(value):
            self._arriving.append((runner.iter, _Arrival(value), judge, self._note_place(runner, in_step)))
        elif wrong := judge(float(value)):
            self._fail(runner, wrong, 'stopped before the step', self._note_place(runner, in_step))

    def _look(self, runner: Runner, before: float = math.inf) -> None:
        """Judge the values of the iterations before this one."""
        while self._arriving and self._arriving[0][0] < before:
            _, arrival, judge, place = self._arriving.popleft()
            if wrong := judge(arrival.value()):
                self._arriving.clear()
                self._fail(runner, wrong, 'stopped before the next checkpoint', place)

    def before_save(self, runner: Runner) -> None:
        """Called by `SafeRunner` in all processes: none may wait in a save for one that has stopped."""
        self._agree(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Called in the first process only."""
        self._look(runner)
        if self._bad is not None:  # no checkpoint may hold a bad step
            raise RunStopped(self._bad[-1], EXIT_NOT_FINITE)

    def _fail(self, runner: Runner, wrong: str, when: str, place: _Place) -> None:
        """Stop the run, or note for the other processes why it must stop."""
        if self._bad is not None:
            return
        process = f' in process {runner.rank}' if self._group is not None else ''
        text = f'{wrong}{process} at iteration {place.iteration + 1} (epoch {place.epoch + 1}): {when}'
        samples = f'indices {place.indices}, images {[getattr(one, "img_path", None) for one in place.samples]}'
        runner.logger.error(f'{text}; the batch of process {runner.rank}: {samples}')
        text += f'; the samples are in the log; the last checkpoint is {place.last}'
        if self._group is None:
            raise RunStopped(text, EXIT_NOT_FINITE)
        self._bad = (place.iteration, place.in_step, runner.rank, text)

    def _note_place(self, runner: Runner, in_step: bool) -> _Place:
        loop = runner.train_loop
        indices = None
        if isinstance(loop, ResumableMixin) and isinstance(loop.dataloader, ExactDataLoader):
            indices = loop.dataloader.indices(*loop.batch_in_work())
        samples = self._batch.get('data_samples') if isinstance(self._batch, dict) else None
        last = runner.message_hub.get_info('last_ckpt')
        return _Place(runner.iter, runner.epoch, in_step, indices, list(samples or []), last)


class _Arrival:
    """A number on its way from the GPU."""

    def __init__(self, value: Tensor) -> None:
        self._value = torch.empty_like(value, device='cpu', pin_memory=True)
        self._value.copy_(value, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def value(self) -> float:
        """Return the number; wait only for the GPU's work of its iteration."""
        self._event.synchronize()
        return float(self._value)


def _is_on_gpu(value: Tensor) -> bool:
    return value.is_cuda


def _gradient_norm(wrapper: OptimWrapper) -> Tensor | None:
    parameters = (p for group in wrapper.optimizer.param_groups for p in group['params'])
    gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients)
    return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]).norm()
