"""NaN or infinity stops a training before the step; a signal stops all processes at the same iteration."""

import os
import signal
import subprocess

import pytest
import torch
from chaos.inject import at_iteration
from chaos.ranks import Team
from chaos.victim import amp_on_cpu, differing, train, weights_of, write_config
from torch.utils.data import DataLoader

from mmsb.checkpoints.store import find_checkpoint, why_invalid
from mmsb.engine import GuardHook
from mmsb.engine.exact_data import PatientWorker

PATIENCE_S = 120


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


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='torch < 2.3 scales losses on a GPU only')
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
    assert 'stopped by a signal to another process after iteration 6: saved' in stopped.said()
    assert why_invalid(arena / 'run/iter_6.pth') is None


def test_workers_live_until_a_run_that_was_signalled_with_them_is_saved(arena):
    config = write_config(arena / 'config.py', steps=4, interval=100, workers=2, persistent=True)
    validation = ('val_dataloader.num_workers=1', 'val_dataloader.persistent_workers=True')

    def signal_all(_) -> None:  # from another process, like a scheduler
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
