"""Passes without batches, batches of one sample, and steps of another size are found before a training starts."""

from unittest.mock import MagicMock

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmsb.analysis import zoo
from mmsb.engine import EpochBasedTrainLoop, launcher
from mmsb.engine.launcher import check_before_run, common_parser, load_config
from mmsb.engine.safety import add_safety

pytest.importorskip('mmpretrain')
DIGITS = 'demo/sb-resnet11_b64-10e_digits.py'
DETECTOR = 'demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'
RUN = ('train_dataloader', 'val_dataloader')
VECTORS = (  # batch norm over vectors
    'model.neck={_delete_: True, type: LinearNeck, in_channels: 256, out_channels: 8, gap_dim: 2, '
    'norm_cfg: {type: BN1d}}',
    'model.head.in_channels=8',
)
NONE, LAST = 'train_dataloader: a pass over the data has no batches', 'train_dataloader: the last batch of an epoch'


@pytest.fixture
def there(arena, monkeypatch):
    monkeypatch.chdir(arena)


@pytest.fixture
def processes(monkeypatch):
    """Let PyTorch believe in several processes, of which this is the first."""

    def begin(count: int) -> None:
        if count > 1:
            torch.distributed.init_process_group('fake', store=FakeStore(), rank=0, world_size=count)
            monkeypatch.setattr(launcher, 'first_process_decides', lambda cfg, decide: decide())

    yield begin
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check(*options: str, config: str = DIGITS, samples: int | None = None) -> str:
    """Rehearse a training; return its error, or nothing."""
    given = [*options, *([f'train_dataloader.dataset.indices={samples}'] if samples else [])]
    cfg = load_config(
        common_parser('').parse_args([str(zoo.CONFIGS / config), '--cfg-options', *given]), lambda _: None
    )
    add_safety(cfg)
    try:
        check_before_run(cfg, RUN)
    except ValueError as error:
        return str(error)
    return ''


def loader(batch_size: int, **options) -> list[str]:
    return [f'train_dataloader.{key}={value}' for key, value in dict(batch_size=batch_size, **options).items()]


def iterations(count: int) -> list[str]:
    return [
        f'train_cfg={{_delete_: True, by_epoch: False, max_iters: {count}}}',
        'log_processor.by_epoch=False',
        'param_scheduler=None',
    ]


@pytest.mark.parametrize(
    ('options', 'samples', 'count', 'said'),
    [
        (loader(16, drop_last=True), 5, 1, f'{NONE} (5 samples, batch_size=16)'),
        (loader(16, drop_last=True), 20, 2, f'{NONE} (20 samples, batch_size=16, 2 processes)'),
        (loader(8, drop_last=True, **{'sampler.round_up': False}), 15, 2, NONE),
        (['val_dataloader.drop_last=True', 'val_dataloader.dataset.indices=7'], None, 1,
         NONE.replace('train', 'val')),
        (loader(16, drop_last=True), 16, 1, ''),
        (loader(8, drop_last=True), 16, 2, ''),
        ([*loader(16, drop_last=True, **{'sampler.type': 'InfiniteSampler'}), *iterations(3)], 5, 1, ''),
    ],
)  # fmt: skip
def test_a_pass_without_batches(options, samples, count, said, there, processes):
    processes(count)
    found = check(*options, samples=samples)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_an_epoch_whose_batches_can_not_be_counted_first_ends_the_run_if_it_has_none():
    loop = object.__new__(EpochBasedTrainLoop)
    loop._runner, loop._batches = MagicMock(), MagicMock()
    loop._epoch = loop._done = 0
    loop._batches.__iter__.return_value = iter([])
    with pytest.raises(ValueError, match='train_dataloader yields no batch'):
        loop.run_epoch()


@pytest.mark.parametrize(
    ('options', 'samples', 'count', 'said'),
    [
        (loader(16), 17, 1, f'{LAST} has one sample (17 samples, batch_size=16)'),
        (loader(16), 34, 2, f'{LAST} has one sample (34 samples, batch_size=16, 2 processes)'),
        (loader(16, **{'sampler.round_up': False}), 33, 2, LAST),
        (loader(1), 8, 1, 'train_dataloader: every batch of an epoch has one sample (8 samples, batch_size=1)'),
        ([*loader(16), *iterations(2)], 17, 1, LAST),
        ([*loader(16), *iterations(1)], 17, 1, ''),
        (loader(16, drop_last=True), 17, 1, ''),
        (loader(16), 17, 2, ''),
        (loader(16), 18, 1, ''),
        ([*loader(16), 'sync_bn=torch'], 34, 2, ''),
        ([*loader(1), 'model.neck.norm_cfg.type=SyncBN'], 8, 2, ''),
        ([*loader(1), 'model.neck.norm_cfg.type=LN'], 8, 1, ''),
    ],
)  # fmt: skip
def test_a_batch_of_one_sample(options, samples, count, said, there, processes):
    processes(count)
    found = check(*VECTORS, *options, samples=samples)
    assert found.startswith(said)
    assert bool(found) == bool(said)
    if said:
        assert "batch norm 'neck.norm' needs more than one value per channel to train: set " in found
        assert ('drop_last=True' in found) == (options[0] != 'train_dataloader.batch_size=1')


def test_a_batch_of_one_sample_is_no_error_where_maps_are_larger(there):
    assert check(*loader(16), samples=17) == ''
    pytest.importorskip('mmdet')
    assert check(*loader(1), config=DETECTOR) == ''


@pytest.mark.parametrize(
    ('options', 'count', 'said'),
    [
        ((), 1, ''),
        (loader(16), 4, ''),
        ([*loader(16), 'optim_wrapper.accumulative_counts=4'], 1, ''),
        ([*loader(16), 'auto_scale_lr.enable=True'], 1, ''),
        ([*loader(16), 'auto_scale_lr=None'], 1, ''),
        (loader(16), 1, 'for 64 samples a step (auto_scale_lr.base_batch_size), and a step has 16 (batch_size=16, '
         'processes: 1, accumulative_counts=1): pass --auto-scale-lr, or set auto_scale_lr.base_batch_size=16 if'),
        ((), 2, 'and a step has 128 (batch_size=64, processes: 2, accumulative_counts=1): pass --auto-scale-lr, or'),
        ([*loader(16), 'optim_wrapper.accumulative_counts=2'], 1, 'and a step has 32 (batch_size=16, processes: 1, '
         'accumulative_counts=2): multiply optim_wrapper.optimizer.lr by 0.5, or set auto_scale_lr.base_batch_size=32'),
        ([*loader(16), 'optim_wrapper.accumulative_counts=4', 'auto_scale_lr.enable=True'], 1,
         '--auto-scale-lr scales it to 16, so multiply optim_wrapper.optimizer.lr by 4'),
    ],
)  # fmt: skip
def test_a_step_of_another_size_is_one_warning(options, count, said, there, processes, monkeypatch, capsys):
    monkeypatch.setattr(launcher, 'dry_run', lambda *_: None)
    processes(count)
    assert check(*options, samples=99) == ''
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count('\n') == bool(said)
    assert printed.startswith('warning: ') or not said


@pytest.mark.parametrize(
    ('gpus', 'kind', 'said'), [(0, 'none', False), (1, 'none', False), (2, 'none', True), (2, 'pytorch', False)]
)
def test_gpus_that_are_left_out_are_one_line(gpus, kind, said, there, monkeypatch, capsys):
    cfg = load_config(common_parser('').parse_args([str(zoo.CONFIGS / DIGITS)]), lambda _: None)
    cfg.launcher = kind
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(launcher, 'first_process_decides', lambda *_: None)
    for loaders, script in (
        (RUN, 'dist_train.sh CONFIG 2'),
        (('test_dataloader',), 'dist_test.sh CONFIG CHECKPOINT 2'),
    ):
        check_before_run(cfg, loaders)
        line = f'warning: 2 GPUs are visible and one is used: bash tools/{script} uses all of them\n'
        assert capsys.readouterr().err == (line if said else '')
