"""NaN or infinity stops a training before the step; a signal stops all processes at the same iteration."""

import os
import signal
import subprocess
import sys
import threading
import traceback

import pytest
import torch
from chaos import toy
from chaos.inject import at_iteration
from chaos.ranks import Team
from chaos.victim import amp_on_cpu, differing, train, weights_of, write_config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from mmsb.checkpoints.store import list_checkpoints, why_invalid
from mmsb.engine import EpochBasedTrainLoop, GuardHook, SafeRunner, guard
from mmsb.engine.exact_data import PatientWorker
from mmsb.engine.stops import RunStopped

PATIENCE_S = 120
NEEDS_SCALER = pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='torch < 2.3 scales on a GPU only')


def _bad_loss(value: float):
    def spoil(runner) -> None:
        forward = runner.model.forward

        def spoilt(*args, **kwargs):
            losses = forward(*args, **kwargs)
            return {key: loss * value for key, loss in losses.items()}

        runner.model.forward = spoilt

    return spoil


def _bad_gradient(index: int):
    def spoil(runner) -> None:
        list(runner.model.parameters())[index].register_hook(lambda gradient: gradient * float('nan'))

    return spoil


@pytest.mark.parametrize(
    ('spoil', 'says'),
    [
        (_bad_loss(float('nan')), 'the loss is nan'),
        (_bad_loss(float('inf')), 'the loss is inf'),
        (_bad_gradient(0), 'the norm of the gradient is nan'),
        (_bad_gradient(-1), 'the norm of the gradient is nan'),
    ],
    ids=['nan', 'inf', 'first gradient', 'last gradient'],
)
def test_what_is_no_number_stops_before_the_step(arena, spoil, says):
    config = write_config(arena / 'config.py', steps=1)
    seen = arena / 'weights.pth'

    def before() -> None:
        at_iteration(4, spoil)
        upstream = GuardHook._fail

        def fail(self, runner, *args) -> None:
            torch.save(dict(runner.model.named_parameters()), seen)
            upstream(self, runner, *args)

        GuardHook._fail = fail

    stopped = train(arena, config, '--work-dir', 'run', before=before)
    assert stopped.code == 65, stopped.said()
    last = stopped.said().splitlines()[-1]
    assert f'error: {says} at iteration 5 (epoch 1): stopped before the step' in last
    assert 'the batch of process 0: indices [' in stopped.said()
    assert '/train/' in stopped.said().split('the batch of process 0')[1]
    assert why_invalid(arena / 'run/iter_4.pth') is None
    assert list_checkpoints([arena / 'run'])[0][0].iteration == 4
    saved, then = weights_of(arena / 'run/iter_4.pth'), torch.load(seen, weights_only=False)
    assert all(torch.equal(saved[name], value) for name, value in then.items())


@NEEDS_SCALER
def test_a_loss_scale_that_is_being_found_is_no_failure(arena):
    config = write_config(arena / 'config.py', steps=2, amp=True)
    with config.open('a') as lines:
        lines.write("custom_hooks = [dict(type='mmsb.GuardHook', max_skipped_steps=3)]\n")
    infinite = {0, 1, 2, 4, 5, 6, 7}

    def spoil(runner) -> None:
        first = next(runner.model.parameters())
        first.register_hook(lambda gradient: gradient * float('inf') if runner.iter in infinite else gradient)

    def before() -> None:
        amp_on_cpu()
        at_iteration(0, spoil)

    stopped = train(arena, config, '--work-dir', 'run', before=before)
    assert stopped.code == 65, stopped.said()
    last = stopped.said().splitlines()[-1]
    assert 'the gradient was not finite 4 times in a row' in last
    assert 'at iteration 8 (epoch 2)' in last


@pytest.mark.parametrize(
    ('option', 'says'),
    [
        (dict(max_skipped_steps=0), 'max_skipped_steps must be an integer of at least 1, got 0'),
        (dict(signals=('TERM',)), "signals must be names such as SIGTERM, got 'TERM'"),
    ],
)
def test_options_of_the_guard_are_checked(option, says):
    with pytest.raises(ValueError, match=says):
        GuardHook(**option)


def test_a_killed_process_has_all_started_again_and_the_bits_are_the_same(arena):
    config = write_config(arena / 'config.py', steps=2, interval=2, accumulate=4, workers=1)
    options = ('--cfg-options', 'env_cfg.dist_cfg.timeout=20')
    whole = Team(arena, config, '--work-dir', 'whole', *options)
    assert whole.wait(PATIENCE_S) == 0, whole.said()

    def before(rank: int) -> None:
        if rank == 1:
            at_iteration(5, lambda _: os.kill(os.getpid(), signal.SIGKILL))

    again = Team(arena, config, '--work-dir', 'run', *options, before=before)
    assert again.wait(PATIENCE_S) == 0, again.said()
    assert "resuming from '" in again.said()
    assert differing(weights_of(arena / 'whole/iter_6.pth'), weights_of(arena / 'run/iter_6.pth')) == []


def test_a_signal_to_one_process_stops_both_at_the_same_iteration(arena):
    config = write_config(arena / 'config.py', steps=4, interval=100)

    def before(rank: int) -> None:
        if rank == 1:
            at_iteration(4, lambda _: os.kill(os.getpid(), signal.SIGUSR1))

    stopped = Team(arena, config, '--work-dir', 'run', before=before, max_restarts=0)
    assert stopped.wait(PATIENCE_S) != 0
    assert 'stopped by SIGUSR1 after iteration 6: saved' in stopped.said()
    assert why_invalid(arena / 'run/iter_6.pth') is None


def from_outside(call: str, pid: int, number: int) -> None:
    """Send a signal from another process, like a scheduler; a minimal Linux has no command for that."""
    code = f'import os; os.{call}({pid}, {int(number)})'
    subprocess.run([sys.executable, '-IS', '-c', code], check=True, start_new_session=True)


def test_workers_live_until_a_run_that_was_signalled_with_them_is_saved(arena):
    config = write_config(arena / 'config.py', steps=4, interval=100, workers=2, persistent=True)
    validation = ('val_dataloader.num_workers=1', 'val_dataloader.persistent_workers=True')

    def signal_all(_) -> None:
        from_outside('killpg', os.getpid(), signal.SIGTERM)

    def before() -> None:
        os.setpgrp()
        at_iteration(8, signal_all)

    stopped = train(arena, config, '--work-dir', 'run', '--cfg-options', *validation, before=before)
    assert stopped.code == 75, stopped.said()
    assert 'stopped by SIGTERM after iteration 9: saved' in stopped.said()
    assert why_invalid(arena / 'run/iter_9.pth') is None


def test_a_worker_ends_at_once_when_the_training_says_so():
    loader = DataLoader(list(range(8)), num_workers=1, persistent_workers=True, worker_init_fn=PatientWorker(None))
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]
    from_outside('kill', worker.pid, signal.SIGTERM)
    from_outside('kill', worker.pid, signal.SIGUSR1)
    assert len(list(batches)) == 7
    worker.join(1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_signal_in_a_validation_stops_both_at_the_same_batch(arena):
    config = write_config(arena / 'config.py', steps=2, interval=100)
    options = ('--cfg-options', 'val_dataloader.batch_size=1')
    whole = Team(arena, config, '--work-dir', 'whole', *options)
    assert whole.wait(PATIENCE_S) == 0, whole.said()

    def before(rank: int) -> None:
        if rank == 1:
            at_iteration(3, lambda _: os.kill(os.getpid(), signal.SIGTERM), 'before_val')

    stopped = Team(arena, config, '--work-dir', 'run', *options, before=before, max_restarts=0)
    assert stopped.wait(PATIENCE_S) != 0
    assert 'stopped by SIGTERM after iteration 3: saved' in stopped.said()
    resumed = Team(arena, config, '--work-dir', 'run', '--resume', *options)
    assert resumed.wait(PATIENCE_S) == 0, resumed.said()
    assert differing(weights_of(arena / 'whole/iter_6.pth'), weights_of(arena / 'run/iter_6.pth')) == []


class _At(Hook):
    """Calls a function in one of the methods of a hook."""

    def __init__(self, name: str, act) -> None:
        setattr(self, name, lambda *_, **__: act())


@pytest.fixture
def got():
    """Handlers of a program, and the signals that they have got."""
    got, names = [], (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(name, lambda number, _: got.append(number)) for name in names]
    yield got
    for name, handler in zip(names, before, strict=True):
        signal.signal(name, handler)


GUARDED = dict(type='mmsb.GuardHook')


def _fail():
    raise ValueError('no such image')


@pytest.mark.parametrize(
    ('act', 'ends'),
    [
        (lambda: None, None),
        (_fail, ValueError),
        (lambda: signal.raise_signal(signal.SIGTERM), RunStopped),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), KeyboardInterrupt),
    ],
    ids=['whole', 'failed', 'stopped', 'interrupted'],
)
@pytest.mark.parametrize('moment', ['before_train', 'after_train_iter', 'after_val_iter'])
@pytest.mark.parametrize('kind', [SafeRunner, Runner])
@pytest.mark.parametrize('stock_loop', [True, False])
def test_a_program_that_goes_on_has_its_handlers_back(act, ends, moment, kind, stock_loop, got, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    loop = dict(train_cfg=dict(by_epoch=True, max_epochs=3)) if stock_loop else {}
    if moment == 'before_train' and ends is RunStopped:
        act, ends = lambda: None, None  # the handlers are not there yet
    run = toy.runner(tmp_path, kind, custom_hooks=[GUARDED, _At(moment, act)], **loop)
    if ends is None:
        run.train()
    else:
        with pytest.raises(ends):
            run.train()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert got == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert got == [signal.SIGTERM]


def test_a_signal_that_is_too_late_for_a_training_goes_to_the_program(got, tmp_path):
    late = _At('after_train', lambda: os.kill(os.getpid(), signal.SIGUSR1))
    toy.runner(tmp_path, custom_hooks=[GUARDED, late]).train()
    assert got == [signal.SIGUSR1]


def test_a_handler_that_somebody_else_has_set_since_stays(got, tmp_path):
    other = lambda *_: None  # noqa: E731
    setting = _At('after_train_iter', lambda: signal.signal(signal.SIGTERM, other))
    toy.runner(tmp_path, custom_hooks=[GUARDED, setting]).train()
    assert signal.getsignal(signal.SIGTERM) is other


def test_a_second_training_in_a_program_can_be_stopped_too(got, tmp_path):
    for name in ('first', 'second'):
        run = toy.runner(
            tmp_path / name, custom_hooks=[GUARDED, _At('after_train_iter', lambda: signal.raise_signal(15))]
        )
        with pytest.raises(RunStopped, match='stopped by SIGTERM after iteration 1'):
            run.train()
    assert got == []


def test_the_optimizer_of_a_program_that_goes_on_is_watched_no_more(tmp_path):
    run = toy.runner(tmp_path, custom_hooks=[GUARDED])
    run.train()
    parameter = next(run.model.parameters())
    run.optim_wrapper.update_params((parameter * float('nan')).sum())
    assert bool(parameter.isnan().all())


def test_a_training_in_a_thread_goes_on_without_handlers_and_says_so(got, tmp_path, capfd):
    handlers, done = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        done.append(toy.runner(tmp_path, custom_hooks=[GUARDED]).train())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE_S)
    assert len(done) == 1
    assert signal.getsignal(signal.SIGTERM) == handlers
    assert capfd.readouterr().out.count('SIGTERM and SIGUSR1 will not be handled: this is not the main thread') == 1


def test_a_signal_after_the_training_does_not_end_the_tool(arena):
    """The handler that answers a signal before the training must not come back."""

    def before() -> None:
        at_iteration(6, lambda _: os.kill(os.getpid(), signal.SIGTERM), 'after_run')

    done = train(arena, write_config(arena / 'config.py', steps=1), '--work-dir', 'run', before=before)
    assert done.code == 0, done.said()
    assert 'nothing to save' not in done.said()


class _Late:
    """Stands for a number on its way from a GPU."""

    def __init__(self, value) -> None:
        self._value = value.clone()

    def value(self) -> float:
        return self._value.numpy().item()


def test_numbers_of_a_gpu_are_judged_an_iteration_late_but_before_a_save(arena):
    """The CPU stands for the GPU: what differs is when a number is looked at."""

    def before() -> None:
        guard._is_on_gpu, guard._Arrival = lambda _: True, _Late
        at_iteration(4, _bad_gradient(0))

    late = train(arena, write_config(arena / 'late.py', steps=2, interval=100), '--work-dir', 'late', before=before)
    assert late.code == 65, late.said()
    last = late.said().splitlines()[-1]
    assert 'the norm of the gradient is nan at iteration 5 (epoch 1): stopped before the next checkpoint' in last
    assert 'Epoch(train) [1][6/6]' in late.said()
    assert 'Epoch(train) [2]' not in late.said()
    config = write_config(arena / 'save.py', steps=2, interval=1)
    saving = train(arena, config, '--work-dir', 'save', before=before)
    assert saving.code == 65, saving.said()
    assert max(one.iteration for one in list_checkpoints([arena / 'save'])[0]) == 4
    assert all(bool(value.isfinite().all()) for value in weights_of(arena / 'save/iter_4.pth').values())


class _ReadBacks(TorchDispatchMode):
    """Counts the numbers that the guard reads from tensors: for each, a GPU would be awaited."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            callers = [frame.filename for frame in traceback.extract_stack()[:-1] if '/torch/' not in frame.filename]
            self.count += callers[-1].endswith('engine/guard.py')
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('late', [True, False])
@pytest.mark.parametrize('amp', [pytest.param(True, marks=NEEDS_SCALER), False])
def test_the_guard_reads_nothing_back_from_a_gpu(arena, late, amp):
    def before() -> None:
        if amp:
            amp_on_cpu()
        if late:
            guard._is_on_gpu, guard._Arrival = lambda _: True, _Late
        run = EpochBasedTrainLoop.run_iter

        def counted(self, *args) -> None:
            with _ReadBacks() as seen:
                run(self, *args)
            with open(arena / 'counts', 'a') as file:
                file.write(f'{seen.count} ')

        EpochBasedTrainLoop.run_iter = counted

    config = write_config(arena / 'config.py', steps=1, interval=100, amp=amp)
    done = train(arena, config, '--work-dir', 'run', before=before)
    assert done.code == 0, done.said()
    counts = (arena / 'counts').read_text().split()
    assert len(counts) == 6
    assert set(counts) == {'0' if late else '2'}


@pytest.mark.gpu
def test_arrivals_do_not_synchronize_the_gpu():
    value = torch.full((), 3.0, device='cuda')
    torch.cuda.set_sync_debug_mode('error')
    try:
        arrival = guard._Arrival(value)
        assert arrival.value() == 3
    finally:
        torch.cuda.set_sync_debug_mode('default')
