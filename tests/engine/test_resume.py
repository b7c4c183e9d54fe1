"""A training that was killed and resumed ends with the bits of one that was not; augmentation and mixup included."""

import os
import signal

import pytest
import torch
from chaos_faults import at_iteration, die
from chaos_victim import Victim, differing, train, weights_of, write_config

from mmsb.engine import rng
from mmsb.models.safe_load import load_checkpoint

LAST = 'iter_12.pth'
KINDS = {'plain': {}, 'ema': dict(ema=True), 'accumulation': dict(accumulate=4)}


def _config(arena, by_epoch: bool, **options):
    return write_config(
        arena / 'config.py', by_epoch=by_epoch, steps=2 if by_epoch else 12, interval=5, save_best=False, **options
    )


@pytest.fixture(scope='module')
def whole_runs(demo_data, tmp_path_factory) -> dict:
    """Weights of uninterrupted trainings, made when they are asked for."""
    runs = {}

    def weights(by_epoch: bool, kind: str) -> dict[str, torch.Tensor]:
        if (by_epoch, kind) not in runs:
            folder = tmp_path_factory.mktemp('whole')
            (folder / 'data').symlink_to(demo_data / 'data')
            victim = train(folder, _config(folder, by_epoch, **KINDS[kind]), '--work-dir', 'run', '--seed', 3)
            assert victim.code == 0, victim.said()
            runs[by_epoch, kind] = weights_of(folder / 'run' / LAST)
        return runs[by_epoch, kind]

    return weights


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_killed_and_resumed_is_bit_identical(arena, whole_runs, by_epoch, workers, kind):
    config = _config(arena, by_epoch, workers=workers, persistent=kind == 'ema', **KINDS[kind])
    killed = train(arena, config, '--work-dir', 'run', '--seed', 3, before=lambda: at_iteration(8, die))
    assert killed.code == -signal.SIGKILL, killed.said()
    resumed = train(arena, config, '--work-dir', 'run', '--resume')
    assert resumed.code == 0, resumed.said()
    assert 'resumed epoch: 0, iter: 5' in resumed.said()
    assert differing(weights_of(arena / 'run' / LAST), whole_runs(by_epoch, kind)) == []


def test_a_validation_that_was_interrupted_is_done_again(arena):
    config = write_config(arena / 'config.py', steps=2, interval=1, save_by_epoch=True)
    killed = train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(6, die, 'after_val_iter'))
    assert killed.code == -signal.SIGKILL
    assert not list(arena.glob('run/best*'))
    resumed = train(arena, config, '--work-dir', 'run', '--resume', before=lambda: at_iteration(6, die))
    assert [line for line in resumed.said().splitlines() if 'Epoch(val) [1]' in line and 'accuracy' in line]
    assert list(arena.glob('run/best*_epoch_1.pth'))


def test_a_signal_saves_and_stops_with_a_code_of_its_own(arena, whole_runs):
    config = _config(arena, True, workers=2)
    stopped = train(
        arena, config, '--work-dir', 'run', '--seed', 3,
        before=lambda: at_iteration(7, lambda _: os.kill(os.getpid(), signal.SIGTERM)),
    )  # fmt: skip
    assert stopped.code == 75, stopped.said()
    assert 'stopped by SIGTERM after iteration 8: saved' in stopped.said().splitlines()[-1]
    assert (arena / 'run/iter_8.pth.sha256').is_file()
    assert train(arena, config, '--work-dir', 'run', '--resume').code == 0
    assert differing(weights_of(arena / 'run' / LAST), whole_runs(True, 'plain')) == []


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_a_validation_keeps_the_weights_and_the_averages(arena, whole_runs, number):
    config = _config(arena, True, ema=True)
    stopped = train(
        arena, config, '--work-dir', 'run', '--seed', 3,
        before=lambda: at_iteration(6, lambda _: os.kill(os.getpid(), number), 'before_val'),
    )  # fmt: skip
    assert stopped.code == 75, stopped.said()
    assert train(arena, config, '--work-dir', 'run', '--resume').code == 0
    assert differing(weights_of(arena / 'run' / LAST), whole_runs(True, 'ema')) == []


def test_a_process_that_torchrun_has_started_again_resumes(arena):
    config = _config(arena, False)
    train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(6, die))
    again = train(arena, config, '--work-dir', 'run', environment=dict(TORCHELASTIC_RESTART_COUNT='1'))
    assert again.code == 0, again.said()
    assert 'resumed epoch: 0, iter: 5' in again.said()


def test_resuming_runs_no_text_of_the_checkpoint_and_reads_it_as_data(arena):
    config = _config(arena, False)
    train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(6, die))
    checkpoint = load_checkpoint(arena / 'run/iter_5.pth')
    checkpoint['meta']['config'] = "open('it_ran', 'w')"
    torch.save(checkpoint, arena / 'text.pth')
    checkpoint['harmless'] = {1: signal.SIGTERM}  # an enum: more than data
    torch.save(checkpoint, arena / 'more.pth')
    quick = ('--work-dir', 'run2', '--cfg-options', 'train_cfg.max_iters=6')
    resumed = train(arena, config, '--resume', 'text.pth', *quick)
    assert resumed.code == 0, resumed.said()
    assert not (arena / 'it_ran').exists()
    refused = train(arena, config, '--resume', 'more.pth', *quick)
    assert refused.code == 1
    assert "checkpoint 'more.pth' cannot be read as data" in refused.said()
    trusted = train(arena, config, '--trust-checkpoint', '--resume', 'more.pth', *quick)
    assert trusted.code == 0, trusted.said()


def test_stock_hooks_are_a_flag_away(arena):
    config = _config(arena, True)
    victim = Victim(arena, config, '--work-dir', 'run', '--stock-hooks', '--cfg-options', 'train_cfg.max_epochs=1')
    assert victim.wait() == 0, victim.said()
    dumped = (arena / 'run/config.py').read_text()
    for name in ('SafeRunner', 'GuardHook', 'mmsb.CheckpointHook', 'mmsb.EpochBasedTrainLoop'):
        assert name not in dumped
    assert not list(arena.glob('run/*.sha256'))


def test_states_of_the_generators_survive_a_checkpoint(tmp_path):
    def draw() -> tuple:
        return torch.rand(3).tolist(), rng.np.random.randn(3).tolist(), rng.random.gauss(0, 1), rng.random.random()

    draw()
    torch.save(dict(state=rng.get_state()), tmp_path / 'state.pth')
    first = draw()
    rng.set_state(load_checkpoint(tmp_path / 'state.pth')['state'])
    assert draw() == first
    with rng.untouched():
        draw()
    stream = rng.Stream(1, 2)
    with stream:
        one = draw()
    with stream:
        two = draw()
    assert one != two
    rng.seed_by(1, 2)
    assert draw() == one
