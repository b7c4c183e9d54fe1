"""Stops a training cleanly: on a loss or gradient that is not finite, or on a signal."""

import functools
import math
import signal
from collections import deque
from collections.abc import Callable
from datetime import timedelta

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mmsb.options import positive_integer
from mmsb.registry import HOOKS

from .checkpoint import CheckpointHook
from .exact_data import ExactDataLoader
from .loops import ResumableMixin
from .runner import SafeRunner
from .stops import EXIT_NOT_FINITE, EXIT_PREEMPTED, RunStopped
from .turns import averages

TIMEOUT_S = 1800


@HOOKS.register_module()
class GuardHook(Hook):
    """Stop before a step whose loss or gradient is NaN or infinite; on a signal, save and stop.

    On a GPU, the loss and the gradient are read an iteration later, so that the processor never waits for the GPU. The
    step has been taken then, but no checkpoint holds it.

    A dynamic loss scaler finds its scale by running into infinite gradients: it skips such a step, and the run stops
    only after many skipped steps in a row.

    A signal takes effect at the end of a training iteration or validation batch, the same one in all processes. If the
    processes validate on different numbers of batches, a signal during validation stops them without saving a new
    checkpoint.

    Args:
        finite: whether to check losses and gradients.
        max_skipped_steps: number of steps that a loss scaler may skip in a row.
        signals: names of the signals to handle.
    """

    priority = 'LOWEST'  # run after the checkpoint hook in the same iteration

    def __init__(
        self, *, finite: bool = True, max_skipped_steps: int = 20, signals: tuple[str, ...] = ('SIGTERM', 'SIGUSR1')
    ) -> None:
        unknown = [name for name in signals if not hasattr(signal, name)]
        if unknown:
            raise ValueError(f'signals must be names such as SIGTERM, got {unknown[0]!r}')
        self.finite, self.signals = finite, tuple(signals)
        self.max_skipped_steps = positive_integer('max_skipped_steps', max_skipped_steps)
        self._training = False
        self._got: str | None = None
        self._skipped = 0
        self._arriving: deque = deque()  # iteration, number, its judge, where it was, the batch
        self._batch = None
        self._group = None  # all processes of a distributed run
        self._validates_together = False
        self._asked = None  # the pending all-reduce: has any process received a signal?

    def before_train(self, runner: Runner) -> None:
        self._training = True
        for name in self.signals:  # for good: after the training, all that is left is to end
            signal.signal(getattr(signal, name), self._note)
        if runner.world_size > 1:
            seconds = ((runner.cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout') or TIMEOUT_S
            self._group = torch.distributed.new_group(backend='gloo', timeout=timedelta(seconds=seconds))
        if self.finite:
            wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', {'': runner.optim_wrapper})
            for wrapper in wrappers.values():
                self._watch(runner, wrapper)

    def after_train(self, runner: Runner) -> None:
        self._look(runner)
        if self._asked is not None:
            self._asked[0].wait()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._batch = data_batch

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._batch = None
        self._look(runner, runner.iter)  # the GPU still works on this iteration
        if self._told_to_stop():
            self._stop(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        if self._group is not None:
            counts = all_gather_object(len(getattr(runner.val_loop, 'dataloader', ())))
            self._validates_together = len({*counts}) == 1 and counts[0] > 0

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self._training:
            return
        if self._group is not None and not self._validates_together:
            if self._got is None:
                return
            text = f'stopped by {self._got} during the validation at iteration {runner.iter}'
            raise RunStopped(f'{text}: --resume goes on from the last checkpoint', EXIT_PREEMPTED)
        if not self._told_to_stop():
            return
        if not isinstance(runner, SafeRunner):  # which does so itself
            for hook in averages(runner):
                hook._swap_ema_parameters()
        self._stop(runner, runner.iter)

    def _note(self, number: int, _frame) -> None:
        self._got = signal.Signals(number).name

    def _told_to_stop(self) -> bool:
        """Return whether any process has received a signal.

        In a distributed run the answer lags by one iteration or batch: the all-reduce that starts at the end of one is
        awaited at the end of the next, so that no process waits for the network.
        """
        if self._group is None:
            return self._got is not None
        stop = False
        if self._asked is not None:
            work, flag = self._asked
            work.wait()
            stop = bool(flag.item())
        if not stop:
            flag = torch.tensor([self._got is not None], dtype=torch.int32)
            self._asked = (
                torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True),
                flag,
            )
        else:
            self._asked = None
        return stop

    def _stop(self, runner: Runner, iteration: int) -> None:
        text = f'stopped by {self._got or "a signal to another process"} after iteration {iteration}'
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
            if scaler is None or not scaler.is_enabled():
                norm = _gradient_norm(wrapper)
                if norm is not None:
                    self._judge(runner, norm, self._require_finite('the norm of the gradient is {}'))
                step(**kwargs)
                return
            scale = scaler._scale.clone()  # get_scale() would wait for the GPU
            step(**kwargs)
            self._judge(runner, torch.where(scaler._scale < scale, scale, -1.0), self._count_skipped)

        wrapper.backward, wrapper.step = watched_backward, watched_step

    def _require_finite(self, text: str) -> Callable[[float], str]:
        return lambda value: '' if math.isfinite(value) else text.format(value)

    def _count_skipped(self, scale: float) -> str:
        """Count a step that the loss scaler skipped at this scale; a negative one means that it was not skipped."""
        self._skipped = self._skipped + 1 if scale > 0 else 0
        if self._skipped <= self.max_skipped_steps:
            return ''
        return f'the gradient was not finite {self._skipped} times in a row, down to a loss scale of {scale}'

    def _judge(self, runner: Runner, value: Tensor, judge: Callable[[float], str]) -> None:
        """Stop the run if `judge` finds something wrong with a value: at once, or after it has arrived from the GPU."""
        where = f'at iteration {runner.iter + 1} (epoch {runner.epoch + 1})'
        if _is_on_gpu(value):
            self._arriving.append((runner.iter, _Arrival(value), judge, where, self._note_batch(runner)))
        elif wrong := judge(float(value)):
            self._fail(runner, wrong, f'{where}: stopped before the step', self._note_batch(runner))

    def _look(self, runner: Runner, before: float = math.inf) -> None:
        """Judge the values of the iterations before this one."""
        while self._arriving and self._arriving[0][0] < before:
            _, arrival, judge, where, batch = self._arriving.popleft()
            if wrong := judge(arrival.value()):
                self._arriving.clear()
                self._fail(runner, wrong, f'{where}: stopped before the next checkpoint', batch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._look(runner)  # no checkpoint may hold a bad step

    def _fail(self, runner: Runner, wrong: str, where: str, batch: tuple) -> None:
        runner.logger.error(f'{wrong} {where}; the batch of process {runner.rank}: {_describe_batch(*batch)}')
        last = runner.message_hub.get_info('last_ckpt')
        raise RunStopped(f'{wrong} {where}; the samples are in the log; the last checkpoint is {last}', EXIT_NOT_FINITE)

    def _note_batch(self, runner: Runner) -> tuple[list | None, list]:
        """Return the indices of the current batch, if known, and its samples, without their pixels."""
        loop = runner.train_loop
        indices = None
        if isinstance(loop, ResumableMixin) and isinstance(loop.dataloader, ExactDataLoader):
            indices = loop.dataloader.indices(*loop.batch_in_work())
        samples = self._batch.get('data_samples') if isinstance(self._batch, dict) else None
        return indices, list(samples or [])


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


def _describe_batch(indices: list | None, samples: list) -> str:
    return f'indices {indices}, images {[getattr(sample, "img_path", None) for sample in samples]}'


def _gradient_norm(wrapper: OptimWrapper) -> Tensor | None:
    parameters = (p for group in wrapper.optimizer.param_groups for p in group['params'])
    gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients)
    return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]).norm()
