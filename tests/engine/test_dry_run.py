"""Mistakes in a config end in one line that names the key, before anything is written; sound configs are left alone."""

import random

import numpy as np
import pytest
import torch
from chaos.victim import differing, train, weights_of, write_config
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmsb.analysis import zoo
from mmsb.engine import rng
from mmsb.engine.dry_run import check_config, loaders
from mmsb.engine.launcher import check_before_run, common_parser, load_config
from mmsb.engine.safety import add_safety

DIGITS = 'demo/sb-resnet11_b64-10e_digits.py'
SCENES = 'demo/fpn_sb-resnet20_b8-200i_digits-scenes.py'
DETECTOR = 'demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'
RUN = ('train_dataloader', 'val_dataloader')
OPTIONS = [  # config, --cfg-options, the start of the error
    (
        DIGITS,
        'train_dataloader.num_worker=0',
        "{key}: DataLoader has no option 'num_worker' (did you mean 'num_workers'?)",
    ),
    (DIGITS, 'train_dataloader.num_workers=-1', '{key} must be an integer of at least 0, got -1'),
    (DIGITS, 'train_dataloader.batch_size=0', '{key} must be an integer of at least 1, got 0'),
    (DIGITS, 'train_dataloader.dataset.data_root=5', '{key} must be a string, got 5'),
    (
        DIGITS,
        'train_dataloader.collate_fn.type=default_colate',
        "{key}: no 'default_colate' among the functions; did you mean 'default_collate'?",
    ),
    (DIGITS, 'train_dataloader.dataset.pipeline.0.color_type=rgb', "{key}='rgb': "),
    (
        DIGITS,
        'default_hooks.checkpoint.intervl=2',
        "{key}: mmsb.CheckpointHook has no option 'intervl' (did you mean 'interval'?)",
    ),
    (DIGITS, 'default_hooks.checkpoint.interval=0', '{key} must be an integer of at least 1, got 0'),
    (
        DIGITS,
        'default_hooks.checkpoint.save_best=accuracy/top2',
        "{key}: no metric 'accuracy/top2'; did you mean 'accuracy/top1'?",
    ),
    (
        DIGITS,
        'default_hooks.checkpointt.type=CheckpointHook',
        "default_hooks has no option 'checkpointt' (did you mean 'checkpoint'?)",
    ),
    (
        DIGITS,
        'optim_wrapper.clip_gradd.max_norm=1',
        "optim_wrapper.clip_gradd: OptimWrapper has no option 'clip_gradd' (did you mean 'clip_grad'?)",
    ),
    (
        DIGITS,
        'optim_wrapper.optimizer.type=AdanW',
        "{key}: no 'AdanW' among the optimizers; did you mean 'Adan' or 'AdamW'?",
    ),
    (DIGITS, 'optim_wrapper.optimizer.lr=high', "{key}='high': "),
    (DIGITS, 'optim_wrapper.paramwise_cfg.norm_decay_multt=0', "{key} has no effect: did you mean 'norm_decay_mult'?"),
    (DIGITS, 'param_scheduler.1.T_maxx=3', "{key}: CosineAnnealingLR has no option 'T_maxx' (did you mean 'T_max'?)"),
    (DIGITS, 'param_scheduler.0.start_factor=0', '{key}=0: float division by zero'),
    (
        DIGITS,
        'auto_scale_lr.base_batch_siz=3',
        "auto_scale_lr has no option 'base_batch_siz' (did you mean 'base_batch_size'?)",
    ),
    (
        DIGITS,
        'env_cfg.cudnn_benchmarkk=True',
        "env_cfg has no option 'cudnn_benchmarkk' (did you mean 'cudnn_benchmark'?)",
    ),
    (DIGITS, 'env_cfg.mp_cfg.opencv_num_threads=few', "{key} must be an integer, got 'few'"),
    (DIGITS, 'log_level=INFOO', '{key} must be one of CRITICAL, ERROR, WARNING, INFO, DEBUG, NOTSET, got '),
    (
        DIGITS,
        'log_processor.window_siz=3',
        "{key}: LogProcessor has no option 'window_siz' (did you mean 'window_size'?)",
    ),
    (DIGITS, 'default_scope=mmpretrian', "{key}: no package 'mmpretrian'; did you mean 'mmpretrain'?"),
    (DIGITS, 'resume=7', '{key} must be True or False, got 7'),
    (DIGITS, 'work_dir=5', '{key} must be a string, got 5'),
    (DIGITS, 'randomness.seed=abc', '{key} must be an integer of at least 0 and below 2**32, got '),
    (DIGITS, 'train_cfg.val_interval=0', '{key} must be an integer of at least 1, got 0'),
    (DIGITS, 'train_cfg.max_epochs=-5', '{key} must be an integer of at least 1, got -5'),
    (
        DIGITS,
        'train_cfg.type=IterBasedTrainLoop',
        "{key}='IterBasedTrainLoop' is not 'EpochBasedTrainLoop', as by_epoch=True says",
    ),
    (DIGITS, 'val_cfg.type=ValLop', "{key}: no 'ValLop' among the loops; did you mean 'ValLoop'?"),
    (DIGITS, 'model.backbone.norm_cfg.type=BN3', "{key}: no 'BN3' among the models; did you mean "),
    (
        DIGITS,
        'model.head.in_channels=17',
        'model.head (num_classes=10, in_channels=17): mat1 and mat2 shapes cannot be multiplied (2x256 and 17x10)',
    ),
    (DIGITS, 'model.head.num_classes=5', '{key}: is 5, but train_dataloader.dataset has 10 classes'),
    (SCENES, 'train_cfg.max_iters=-5', '{key} must be an integer of at least 1, got -5'),
    (
        SCENES,
        'val_evaluator.iou_metricz=[mIoU]',
        "{key}: IoUMetric has no option 'iou_metricz' (did you mean 'iou_metrics'?)",
    ),
    (SCENES, 'val_evaluator.iou_metrics=[mIoUx]', "{key}=['mIoUx']: metrics ['mIoUx'] is not supported"),
    (SCENES, 'model.decode_head.in_index=9', '{key}=9: `assert isinstance(in_index, (list, tuple))` fails'),
    (SCENES, 'model.test_cfg.mode=whoole', "{key}='whoole': "),
    (DETECTOR, 'model.test_cfg.rcnn.score_thrr=0.1', "{key} has no effect: did you mean 'score_thr'?"),
    (DETECTOR, 'model.train_cfg.rpn_proposal.min_bbox_size=tiny', "{key}='tiny': '>=' not supported between"),
    (DETECTOR, 'val_evaluator.metric=boxx', "{key}='boxx': metric should be one of "),
    (DETECTOR, 'train_dataloader.dataset.filter_cfg.min_sizee=3', "{key} has no effect: did you mean 'min_size'?"),
]
FILES = [  # what a config adds to the digits', the end of the error
    ('import sys\nsys.exit(0)', 'calls sys.exit(0)'),
    (
        'optim_wraper = dict(optimizer=dict(lr=1))',
        "sets 'optim_wraper', which has no effect: did you mean 'optim_wrapper'?",
    ),
    ('optim_wrapper = dict(optimizer=dict(lr="high"))', "optim_wrapper.optimizer.lr='high': "),
]


def prepared(path, *options: str) -> Config:
    args = common_parser('').parse_args([str(path), *(['--cfg-options', *options] if options else [])])
    cfg = load_config(args, lambda cfg: None)
    add_safety(cfg)
    return cfg


def error_of(path, *options: str) -> str:
    try:
        check_before_run(prepared(path, *options), RUN)
    except ValueError as error:
        return str(error)
    pytest.fail('no error')


@pytest.fixture
def there(demo_data, tmp_path, monkeypatch):
    """Work in a folder that must stay as it is."""
    (tmp_path / 'data').symlink_to(demo_data / 'data')
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert {path.name for path in tmp_path.iterdir()} <= {'data', 'config.py', 'base.py'}


@pytest.mark.parametrize(('config', 'option', 'says'), OPTIONS, ids=[option for _, option, _ in OPTIONS])
def test_a_mistake_is_one_line_that_names_the_key(there, config, option, says):
    said = error_of(zoo.CONFIGS / config, option)
    assert said.startswith(says.replace('{key}', option.partition('=')[0]))
    assert '\n' not in said


@pytest.mark.parametrize(('text', 'says'), FILES, ids=[text for text, _ in FILES])
def test_a_mistake_in_a_file_too(there, text, says):
    (there / 'config.py').write_text(f'_base_ = {str(zoo.CONFIGS / DIGITS)!r}\n{text}\n')
    assert says in error_of(there / 'config.py')


def test_names_that_nothing_uses_are_one_warning(there, capsys):
    (there / 'config.py').write_text(f'_base_ = {str(zoo.CONFIGS / DIGITS)!r}\nmax_iters = -5\nbatch = 4\n')
    prepared(there / 'config.py')
    assert (
        capsys.readouterr().err
        == f"warning: config '{there / 'config.py'}' sets batch, max_iters, which nothing uses\n"
    )


def test_names_that_a_file_or_its_heir_uses_are_no_mistake(there, capsys):
    (there / 'base.py').write_text(f'_base_ = {str(zoo.CONFIGS / DIGITS)!r}\nrate = 0.1\nepochs = 3\n')
    (there / 'config.py').write_text(
        "_base_ = 'base.py'\nsteps = [1]\noptim_wrapper = dict(optimizer=dict(lr=_base_.rate))\n"
        "param_scheduler = [dict(type='MultiStepLR', milestones=steps)]\n"
        'train_cfg = dict(max_epochs={{_base_.epochs}})\n'
    )
    check_before_run(prepared(there / 'config.py'), RUN)
    assert 'nothing uses' not in capsys.readouterr().err


@pytest.mark.parametrize('config', [DIGITS, SCENES, DETECTOR, 'demo/sb-resnet20_b16-250i_digits-cue.py'])
def test_a_sound_config_is_let_through_and_leaves_nothing_behind(there, config):
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    managers = [MMLogger, MessageHub, DefaultScope, *Visualizer.__subclasses__()]
    before, instances = rng.get_state(), [dict(one._instance_dict) for one in managers]
    check_before_run(prepared(zoo.CONFIGS / config), RUN)
    after = rng.get_state()
    assert all(np.array_equal(after[key], before[key]) for key in before)
    assert [dict(one._instance_dict) for one in managers] == instances


@pytest.mark.parametrize(
    'config', sorted(str(path.relative_to(zoo.CONFIGS)) for path in zoo.CONFIGS.glob('[!_]*/*.py'))
)
def test_no_false_alarm_from_reading_a_shipped_config(config):
    check_config(Config.fromfile(zoo.CONFIGS / config))


def test_the_weights_are_the_same_as_without(arena):
    config = write_config(arena / 'config.py', steps=1)

    def skip() -> None:
        from mmsb.engine import launcher

        launcher.dry_run = lambda *_: None

    checked, unchecked = (
        train(arena, config, '--work-dir', name, '--seed', 3, before=before)
        for name, before in (('checked', None), ('unchecked', skip))
    )
    assert (checked.code, unchecked.code) == (0, 0), checked.said()
    assert differing(*(weights_of(arena / name / 'iter_6.pth') for name in ('checked', 'unchecked'))) == []


def test_missing_data_that_the_run_downloads_are_not_downloaded(there, monkeypatch):
    from mmpretrain.datasets import cifar

    monkeypatch.setattr(cifar, 'download_and_extract_archive', lambda *_, **__: pytest.fail('downloads'))
    (there / 'data').unlink()
    (there / 'data/cifar100').mkdir(parents=True)
    name = zoo.CONFIGS / 'cifar100/sb-resnet38_b64-300e_cifar100.py'
    check_before_run(prepared(name), RUN)
    assert 'AdamW' in error_of(name, 'optim_wrapper.optimizer.type=AdanW')
    assert 'pipeline.1.prob=-0.5' in error_of(name, 'train_dataloader.dataset.pipeline.1.prob=-0.5')


def test_a_metric_that_writes_files_does_not_yet(there):
    check_before_run(prepared(zoo.CONFIGS / SCENES, 'val_evaluator.output_dir=masks'), RUN)
    assert not (there / 'masks').exists()


def test_testing_is_rehearsed_too(there):
    cfg = prepared(zoo.CONFIGS / SCENES, 'test_evaluator.iou_metricz=[mIoU]')
    with pytest.raises(ValueError, match=r'^test_evaluator\.iou_metricz: '):
        check_before_run(cfg, ('test_dataloader',))


def test_a_large_annotation_file_is_not_read(there, monkeypatch):
    datasets = pytest.importorskip('mmdet.datasets')
    read, load = [], datasets.CocoDataset.load_data_list
    small = there / 'data/demo/digits-scenes/annotations/instances_val.json'
    monkeypatch.setattr(loaders, 'LARGE_BYTES', small.stat().st_size)
    monkeypatch.setattr(datasets.CocoDataset, 'load_data_list', lambda self: read.append(self.ann_file) or load(self))
    check_before_run(prepared(zoo.CONFIGS / DETECTOR), RUN)
    assert {path.rpartition('_')[2] for path in read} == {'val.json'}
