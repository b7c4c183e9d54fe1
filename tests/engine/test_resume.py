"""A killed and resumed training ends bit-identical to an uninterrupted one, including augmentation and mixup."""

import gzip
import os
import signal

import pytest
import torch
from chaos.inject import at_iteration, die
from chaos.victim import ROOT, Victim, amp_on_cpu, differing, train, weights_of, write_config
from mmengine.runner.checkpoint import _load_checkpoint as stock_load
from scenes import FOUR_SCENES

from mmsb.checkpoints.load import load_checkpoint
from mmsb.checkpoints.plain import restore
from mmsb.engine import rng

LAST = 'iter_12.pth'
KINDS = {'plain': {}, 'ema': dict(ema=True), 'accumulation': dict(accumulate=4)}
AMP = pytest.param('amp', marks=pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='torch < 2.3'))


def _prepared(kind: str, act=None):
    """Prepare a victim before it trains."""

    def before() -> None:
        if kind == 'amp':
            amp_on_cpu()
        if act:
            act()

    return before


def _config(arena, by_epoch: bool, kind: str = 'plain', **options):
    options = dict(options, steps=2 if by_epoch else 12, interval=5, save_best=False, amp=kind == 'amp')
    return write_config(arena / 'config.py', by_epoch=by_epoch, **KINDS.get(kind, {}), **options)


@pytest.fixture(scope='module')
def whole_runs(demo_data, tmp_path_factory) -> dict:
    """Weights of uninterrupted trainings, computed on demand."""
    runs = {}

    def weights(by_epoch: bool, kind: str) -> dict[str, torch.Tensor]:
        if (by_epoch, kind) not in runs:
            folder = tmp_path_factory.mktemp('whole')
            (folder / 'data').symlink_to(demo_data / 'data')
            config = _config(folder, by_epoch, kind)
            victim = train(folder, config, '--work-dir', 'run', '--seed', 3, before=_prepared(kind))
            assert victim.code == 0, victim.said()
            runs[by_epoch, kind] = weights_of(folder / 'run' / LAST)
        return runs[by_epoch, kind]

    return weights


@pytest.mark.parametrize(
    ('library', 'name', 'by_epoch'),
    [
        ('mmdet', 'faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes', True),
        ('mmseg', 'fpn_sb-resnet20_b8-200i_digits-scenes', False),
    ],
)
def test_detection_and_segmentation_too(arena, library, name, by_epoch):
    pytest.importorskip(f'{library}.apis')  # once for the three trainings
    (arena / 'config.py').write_text(f"""
_base_ = '{ROOT}/configs/demo/{name}.py'
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(indices=6))
val_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=4, dataset=dict(indices=4))
train_cfg = dict({'max_epochs=2' if by_epoch else 'max_iters=6'}, val_interval={2 if by_epoch else 6})
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', interval=1, by_epoch=False))
{FOUR_SCENES if library == 'mmdet' else ''}""")
    whole = train(arena, arena / 'config.py', '--work-dir', 'whole')
    assert whole.code == 0, whole.said()
    killed = train(arena, arena / 'config.py', '--work-dir', 'run', before=lambda: at_iteration(4, die))
    assert killed.code == -signal.SIGKILL, killed.said()
    resumed = train(arena, arena / 'config.py', '--work-dir', 'run', '--resume')
    assert resumed.code == 0, resumed.said()
    assert f'resumed epoch: {int(by_epoch)}, iter: 4' in resumed.said()
    assert differing(weights_of(arena / 'whole/iter_6.pth'), weights_of(arena / 'run/iter_6.pth')) == []


@pytest.mark.parametrize('kind', [*KINDS, AMP])
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_killed_and_resumed_is_bit_identical(arena, whole_runs, by_epoch, workers, kind):
    config = _config(arena, by_epoch, kind, workers=workers, persistent=kind == 'ema')
    deadly = _prepared(kind, lambda: at_iteration(8, die))
    killed = train(arena, config, '--work-dir', 'run', '--seed', 3, before=deadly)
    assert killed.code == -signal.SIGKILL, killed.said()
    resumed = train(arena, config, '--work-dir', 'run', '--resume', before=_prepared(kind))
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
    config = _config(arena, True, 'ema')
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


def test_a_restart_does_not_go_on_with_an_older_run_of_the_folder(arena):
    config = _config(arena, False)
    train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(6, die))
    environment = dict(TORCHELASTIC_RESTART_COUNT='1', MMSB_LAUNCH='this one')
    again = train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(1, die), environment=environment)
    assert 'resumed' not in again.said()


def test_a_config_that_says_resume_takes_the_newest_valid_one(arena):
    config = _config(arena, False)
    resume = ('--cfg-options', 'resume=True', 'train_cfg.max_iters=6')
    anew = train(arena, config, '--work-dir', 'run', *resume, before=lambda: at_iteration(5, die))
    assert anew.code == -signal.SIGKILL, anew.said()
    train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(11, die))
    os.truncate(arena / 'run/iter_10.pth', 1000)
    resumed = train(arena, config, '--work-dir', 'run', *resume)
    assert resumed.code == 0, resumed.said()
    assert "iter_10.pth' does not match its" in resumed.said()
    assert 'resumed epoch: 0, iter: 5' in resumed.said()


def test_stock_hooks_are_a_flag_away(arena):
    config = _config(arena, True)
    victim = Victim(arena, config, '--work-dir', 'run', '--stock-hooks', '--cfg-options', 'train_cfg.max_epochs=1')
    assert victim.wait() == 0, victim.said()
    dumped = (arena / 'run/config.py').read_text()
    for name in ('SafeRunner', 'GuardHook', 'mmsb.CheckpointHook', 'mmsb.EpochBasedTrainLoop'):
        assert name not in dumped
    assert not list(arena.glob('run/*.sha256'))


def test_stock_mmengine_goes_on_from_our_checkpoints(arena):
    config = _config(arena, False)
    killed = train(arena, config, '--work-dir', 'run', before=lambda: at_iteration(6, die))
    assert killed.code == -signal.SIGKILL, killed.said()
    assert {'state_dict', 'optimizer', 'meta'} <= set(stock_load(str(arena / 'run/iter_5.pth')))
    resumed = train(arena, config, '--work-dir', 'run', '--resume', '--stock-hooks')
    assert resumed.code == 0, resumed.said()
    assert 'resumed epoch: 0, iter: 5' in resumed.said()


def test_a_checkpoint_with_objects_of_mmengine_is_resumed(arena):
    """The format of stock MMEngine, and of mmsb up to 0.1.0: HistoryBuffers, NumPy scalars, a function."""
    write_config(arena / 'base.py', by_epoch=False, steps=8, interval=4)
    (arena / 'config.py').write_text("""
_base_ = 'base.py'
model = dict(backbone=dict(base_channels=1, spatial_bias=dict(pool_size=2)), head=dict(in_channels=16))
param_scheduler = [dict(type='OneCycleLR', eta_max=0.1, total_steps=8, by_epoch=False)]
""")
    golden = ROOT / 'tests/golden/iter_4_with_objects.pth.gz'
    (arena / 'run').mkdir()  # PyTorch below 2.6 reads no pickle from elsewhere
    (arena / 'run/iter_4.pth').write_bytes(gzip.decompress(golden.read_bytes()))
    resumed = train(arena, 'config.py', '--work-dir', 'run', '--seed', 3, '--resume', 'run/iter_4.pth')
    assert resumed.code == 0, resumed.said()
    assert 'resumed epoch: 0, iter: 4' in resumed.said()
    losses = []
    for path in (arena / 'run/iter_4.pth', arena / 'run/iter_8.pth'):
        checkpoint = restore(load_checkpoint(path))
        losses.append(checkpoint['message_hub']['log_scalars']['train/loss'].data[0].tolist())
    assert len(losses[1]) == 8
    assert losses[1][:4] == losses[0]
    assert torch.load(arena / 'run/iter_8.pth', weights_only=True)['message_hub']['runtime_info']['iter'] == 7


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
