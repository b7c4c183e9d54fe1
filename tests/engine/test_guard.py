"""What is no number ends a training before the step; a signal ends all processes at the same iteration."""

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from chaos.inject import at_iteration
from chaos.ranks import Team
from chaos.victim import differing, train, weights_of, write_config
from torch import nn
from torch.utils.data import DataLoader

from mmsb.checkpoints.store import find_checkpoint, why_invalid
from mmsb.engine import GuardHook
from mmsb.engine.exact_data import PatientWorker
from mmsb.engine.stops import RunStopped

PATIENCE_S = 120


def _bad_loss(value: float):
    def spoil(runner) -> None:
        forward = runner.model.forward

        def spoilt(*args, **kwargs):
            losses = forward(*args, **kwargs)
            return {key: loss * value for key, loss in losses.items()}

        runner.model.forward = spoilt

    return spoil


def _bad_gradient(runner) -> None:
    next(runner.model.parameters()).register_hook(lambda gradient: gradient * float('nan'))


@pytest.mark.parametrize(
    ('spoil', 'says'),
    [
        (_bad_loss(float('nan')), 'the loss is nan'),
        (_bad_loss(float('inf')), 'the loss is inf'),
        (_bad_gradient, 'the norm of the gradient is nan'),
    ],
    ids=['nan', 'inf', 'gradient'],
)
def test_what_is_no_number_stops_before_the_step(arena, spoil, says):
    config = write_config(arena / 'config.py', steps=1)
    seen = arena / 'weights.pth'

    def before() -> None:
        at_iteration(4, spoil)
        upstream = GuardHook._fail

        def fail(self, runner, text) -> None:
            torch.save(dict(runner.model.named_parameters()), seen)
            upstream(self, runner, text)

        GuardHook._fail = fail

    stopped = train(arena, config, '--work-dir', 'run', before=before)
    assert stopped.code == 65, stopped.said()
    last = stopped.said().splitlines()[-1]
    assert f'error: {says} at iteration 5 (epoch 1): stopped before the step' in last
    assert 'the batch of process 0: indices [' in stopped.said()
    assert '/train/' in stopped.said().split('the batch of process 0')[1]
    assert why_invalid(arena / 'run/iter_4.pth') is None
    assert find_checkpoint([str(arena / 'run')])[0].endswith('iter_4.pth')
    saved, then = weights_of(arena / 'run/iter_4.pth'), torch.load(seen, weights_only=False)
    assert all(torch.equal(saved[name], value) for name, value in then.items())


class _Scaler:
    """A dynamic loss scale, as of AMP."""

    def __init__(self, found_inf: list[bool]) -> None:
        self.scale, self.found_inf = 2.0**16, found_inf

    def get_scale(self) -> float:
        return self.scale


class _Wrapper:
    def __init__(self, found_inf: list[bool]) -> None:
        self.loss_scaler, self.steps = _Scaler(found_inf), 0

    def backward(self, loss) -> None:
        loss.backward()

    def step(self) -> None:
        self.steps += 1
        if self.loss_scaler.found_inf.pop(0):
            self.loss_scaler.scale /= 2


def test_a_loss_scale_that_is_being_found_is_no_failure():
    runner = SimpleNamespace(
        iter=0, epoch=0, rank=0, train_loop=None, logger=SimpleNamespace(error=print),
        message_hub=SimpleNamespace(get_info=lambda _: None),
    )  # fmt: skip
    hook = GuardHook(max_skipped_steps=3)
    hook._batch = None
    wrapper = _Wrapper([True] * 3 + [False] + [True] * 4)
    hook._watch(runner, wrapper)
    for _ in range(7):
        wrapper.step()
    with pytest.raises(RunStopped, match='not finite 4 times in a row') as stopped:
        wrapper.step()
    assert stopped.value.exit_code == 65


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
    assert 'stopped by a signal to another process after iteration 6: saved' in stopped.said()
    assert why_invalid(arena / 'run/iter_6.pth') is None


def test_workers_live_until_a_run_that_was_signalled_with_them_is_saved(arena):
    config = write_config(arena / 'config.py', steps=4, interval=100, workers=2, persistent=True)
    validation = ('val_dataloader.num_workers=1', 'val_dataloader.persistent_workers=True')

    def signal_all(_) -> None:  # by another process, as a scheduler does
        subprocess.run(['kill', '-TERM', '--', f'-{os.getpid()}'], check=True, start_new_session=True)

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
    subprocess.run(['kill', '-TERM', str(worker.pid)], check=True)
    subprocess.run(['kill', '-USR1', str(worker.pid)], check=True)
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
    assert 'stopped by a signal to another process after iteration 3: saved' in stopped.said()
    resumed = Team(arena, config, '--work-dir', 'run', '--resume', *options)
    assert resumed.wait(PATIENCE_S) == 0, resumed.said()
    assert differing(weights_of(arena / 'whole/iter_6.pth'), weights_of(arena / 'run/iter_6.pth')) == []


def test_the_norm_is_over_all_gradients():
    from mmsb.engine.guard import _gradient_norm

    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1)
    assert _gradient_norm(SimpleNamespace(optimizer=optimizer)) is None
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    layer.bias.grad = torch.tensor([12.0])
    assert float(_gradient_norm(SimpleNamespace(optimizer=optimizer))) == 13
