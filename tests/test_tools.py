"""The tools as a user runs them: their output, and their messages for bad input."""

import asyncio
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import scenes
import torch
import torchvision
from mmengine.config import Config
from PIL import Image

from mmsb.checkpoints.load import load_state_dict
from mmsb.configs import build_model
from mmsb.models.weights import check_fit

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / 'configs/demo/sb-resnet11_b64-10e_digits.py'
CUE = ROOT / 'configs/demo/sb-resnet20_b16-250i_digits-cue.py'
SCENES = ROOT / 'configs/demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'
SHORT = ('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=32', 'train_dataloader.batch_size=16')
IN_PROCESS = ('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
              'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False')  # fmt: skip


@pytest.fixture(scope='module')
def trained(demo_data, tmp_path_factory, run_tool) -> Path:
    """Work dir of a short training, started from its folder by relative paths."""
    work_dir = tmp_path_factory.mktemp('trained') / 'run'
    done = run_tool('train.py', DIGITS, '--work-dir', work_dir, '--seed', 7, '--tensorboard', '--cfg-options',
               *SHORT, *IN_PROCESS, cwd=demo_data, fresh=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return work_dir


def _dumped(work_dir: Path) -> Config:
    return Config.fromfile(work_dir / DIGITS.name)


def test_training_writes_what_a_user_expects(trained):
    assert (trained / 'epoch_1.pth').is_file()
    assert list(trained.glob('*/vis_data/events.out.tfevents.*'))
    scalars = [json.loads(line) for line in next(trained.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert 'accuracy/top1' in scalars[-1]


def test_all_that_runs_is_in_the_dumped_config(trained):
    cfg = _dumped(trained)
    assert cfg.randomness.seed == 7
    assert dict(type='mmsb.ProgressHook') in cfg.custom_hooks
    assert cfg.train_dataloader.collate_fn.type == 'default_collate'
    assert cfg.train_cfg.max_epochs == 1
    assert cfg.visualizer.vis_backends[-1].type == 'TensorboardVisBackend'


def test_dumped_config_trains_to_the_same_weights(trained, demo_data, tmp_path, run_tool):
    done = run_tool('train.py', trained / DIGITS.name, '--work-dir', tmp_path / 'again', cwd=demo_data)
    assert done.returncode == 0, done.stderr
    first, again = (
        torch.load(folder / 'epoch_1.pth', map_location='cpu', weights_only=False)['state_dict']
        for folder in (trained, tmp_path / 'again')
    )
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize('deploy', [False, True])
def test_testing_gives_the_accuracy_of_the_validation(deploy, trained, demo_data, tmp_path, run_tool):
    flag = ('--deploy',) if deploy else ()
    done = run_tool('test.py', DIGITS, trained / 'epoch_1.pth', '--work-dir', tmp_path, '--out', tmp_path / 'out.pkl',
                    *flag, '--cfg-options', 'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False',
                    'test_evaluator.topk=(1,)', cwd=demo_data, fresh=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out.pkl').is_file()
    assert ('deployed: 17 batch norms are folded' in done.stdout) == deploy
    scalars = [json.loads(line) for line in next(trained.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    tested = json.loads(next(tmp_path.glob('*/*.json')).read_text().splitlines()[-1])
    assert tested['accuracy/top1'] == scalars[-1]['accuracy/top1']


@pytest.mark.parametrize('how', ['auto', 'path'])
def test_resume_goes_on_where_it_stopped(trained, demo_data, tmp_path, run_tool, how):
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    os.link(trained / 'epoch_1.pth', work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    flag = ('--resume',) if how == 'auto' else ('--resume', work_dir / 'epoch_1.pth')
    done = run_tool('train.py', DIGITS, '--work-dir', work_dir, *flag, '--cfg-options', *SHORT, *IN_PROCESS,
                    'train_cfg.max_epochs=2', cwd=demo_data)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (work_dir / 'epoch_2.pth').is_file()
    steps = [
        json.loads(line)['step'] for line in next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    ]
    assert min(steps) > 1


def test_options_are_stronger_than_flags_and_flags_than_the_config(trained, demo_data, tmp_path, run_tool):
    done = run_tool('train.py', DIGITS, '--work-dir', tmp_path / 'run', '--seed', 7, '--cfg-options', *SHORT,
                    *IN_PROCESS, 'randomness.seed=9', cwd=demo_data)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert _dumped(tmp_path / 'run').randomness.seed == 9


WARM_START = ('model.backbone.init_cfg.type=Pretrained',)
BAD_INPUT = {
    'config that does not exist': (['nothing.py'], "'nothing.py' does not exist"),
    'config that is none': ([ROOT / 'README.md'], 'is not a config'),
    'misspelt key of the network': ([DIGITS, '--cfg-options', 'model.backbone.dpeth=20'], "did you mean 'depth'?"),
    'misspelt key of the bias': (
        [DIGITS, '--cfg-options', 'model.backbone.spatial_bias.pol=max'],
        "spatial_bias has no option 'pol' (did you mean 'pool'?)",
    ),
    'misspelt section': ([DIGITS, '--cfg-options', 'optim_wraper.optimizer.lr=1'], "did you mean 'optim_wrapper'?"),
    'unknown depth': ([DIGITS, '--cfg-options', 'model.backbone.depth=50'], 'depth must be 9n + 2'),
    'stages of wrong length': (
        [DIGITS, '--cfg-options', 'model.backbone.sb_stages=(True,False)'],
        'sb_stages must have one entry for each of the 3 stages, got (True, False)',
    ),
    'dataset that is not there': (
        [DIGITS, '--cfg-options', 'train_dataloader.dataset.data_root=nowhere'],
        "dataset folder 'nowhere' of train_dataloader does not exist",
    ),
    'demo data not made yet': (
        [DIGITS, '--cfg-options', 'train_dataloader.dataset.data_root=data/demo/other'],
        'python -m mmsb.datasets.digits',
    ),
    'annotation file that is not there': (
        [DIGITS, '--cfg-options', 'val_dataloader.dataset.ann_file=no.txt'],
        "annotation file 'data/demo/digits/no.txt' of val_dataloader.dataset does not exist: put it there, or pass "
        '--cfg-options val_dataloader.dataset.ann_file=FILE',
    ),
    'broken image': (
        [DIGITS, '--check-data', '--cfg-options', 'train_dataloader.dataset.data_root=broken'],
        'the data have 1 error, listed above: nothing was started',
    ),
    'syntax error': (['broken.py'], "config 'broken.py': "),
    'base that is not there': (['orphan.py'], "config 'orphan.py': "),
    'config without a network': (['empty.py'], "config 'empty.py' has no model"),
    'folder as checkpoint': ([DIGITS, '--resume', '.'], "checkpoint '.' is a folder"),
    'seed out of range': ([DIGITS, '--seed', '-1'], '--seed must be at least 0'),
    'resume from nothing': ([DIGITS, '--resume', 'nothing.pth'], "checkpoint 'nothing.pth' does not exist"),
    'warm start from nothing': (
        [DIGITS, '--cfg-options', *WARM_START, 'model.backbone.init_cfg.checkpoint=nothing.pth'],
        "checkpoint 'nothing.pth' does not exist",
    ),
    'fp16 without a GPU': ([DIGITS, '--amp', 'fp16'], 'AmpOptimWrapper needs a GPU'),
}  # fmt: skip


def broken_image(folder: Path) -> None:
    """Make a class folder for each digit, with one image; one is empty."""
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32), (200, 200, 200)).save(folder / f'{digit}/0.png')
    (folder / '7/0.png').write_bytes(b'')


@pytest.mark.parametrize(('args', 'says'), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_writes_nothing(args, says, demo_data, tmp_path, run_tool):
    work_dir = tmp_path / 'run'
    (demo_data / 'broken.py').write_text('model = dict(')
    (demo_data / 'orphan.py').write_text("_base_ = 'nowhere.py'")
    (demo_data / 'empty.py').write_text('lr = 1')
    broken_image(demo_data / 'broken/train')
    done = run_tool('train.py', args[0], '--work-dir', work_dir, *args[1:], cwd=demo_data)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    assert says in lines[0]
    assert 'Traceback' not in done.stderr
    assert not work_dir.exists()


@pytest.mark.parametrize('option', ['model.backbone', 'find_unused_parameters=True'])
def test_options_are_pairs_and_may_be_any_that_the_runner_reads(option, demo_data, tmp_path, run_tool):
    done = run_tool('train.py', DIGITS, '--work-dir', tmp_path / 'run', '--cfg-options', option,
                    'model.backbone.depth=12', cwd=demo_data)  # fmt: skip
    pair = '=' in option
    assert done.returncode == (1 if pair else 2)
    assert ('depth must be 9n + 2' if pair else "needs KEY=VALUE, got 'model.backbone'") in done.stderr


def test_resume_without_a_checkpoint_starts_as_the_config_says(trained, demo_data, tmp_path, run_tool):
    start = f'load_from={trained / "epoch_1.pth"}'
    done = run_tool('train.py', DIGITS, '--work-dir', tmp_path / 'run', '--resume', '--tensorboard', '--cfg-options',
                    *SHORT, *IN_PROCESS, start, cwd=demo_data)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert _dumped(tmp_path / 'run').load_from == str(trained / 'epoch_1.pth')


def test_testing_needs_no_file_of_the_warm_start(trained, demo_data, tmp_path, run_tool):
    frozen = 'model.backbone.frozen_stages=1'  # which the checkpoint of a warm start has a say in
    options = (*WARM_START, 'model.backbone.init_cfg.checkpoint=gone.pth', frozen, 'test_dataloader.num_workers=0')
    done = run_tool('test.py', DIGITS, trained / 'epoch_1.pth', '--work-dir', tmp_path, '--cfg-options', *options,
                    'test_dataloader.persistent_workers=False', cwd=demo_data)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_checkpoint_that_fits_nothing(demo_data, tmp_path, run_tool):
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), tmp_path / 'other.pth')
    checkpoint = f'model.backbone.init_cfg.checkpoint={tmp_path / "other.pth"}'
    options = ('--cfg-options', *WARM_START, checkpoint)
    done = run_tool('train.py', DIGITS, '--work-dir', tmp_path / 'run', *options, cwd=demo_data)
    assert done.returncode == 1
    assert 'has no ResNet weights' in done.stderr
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('tool', 'flags', 'option', 'says'),
    [
        ('test.py', (), 'model.backbone.depth=20', 'does not fit: it has no backbone.layer1.1'),
        ('test.py', (), 'model.backbone.spatial_bias=None', 'the network has no backbone.layer1.0.spatial_bias'),
        ('train.py', ('--resume',), 'model.head.num_classes=9', 'head.fc.weight has shape (10, 256), needs (9, 256)'),
    ],
)
def test_checkpoint_of_another_network_is_not_loaded_in_part(
    trained, demo_data, tmp_path, run_tool, tool, flags, option, says
):
    args = (DIGITS, *flags, trained / 'epoch_1.pth', '--work-dir', tmp_path / 'run', '--cfg-options', option)
    done = run_tool(tool, *args, cwd=demo_data)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_failure_of_the_run_is_one_line_and_its_traceback_in_the_log(demo_data, tmp_path, run_tool, workers):
    broken_image(demo_data / 'broken/train')  # neither the first one nor the last, which are tried before the run
    wrong = ('train_dataloader.dataset.data_root=broken', f'train_dataloader.num_workers={workers}')
    options = ('train_cfg.max_epochs=1', 'train_dataloader.batch_size=5', *IN_PROCESS, *wrong)
    done = run_tool('train.py', DIGITS, '--work-dir', tmp_path / 'run', '--cfg-options', *options, cwd=demo_data)
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if line.startswith('error: '))
    log = next((tmp_path / 'run').glob('*/*.log'))
    assert str(log) in line
    assert 'Traceback (most recent call last)' in log.read_text()


def test_missing_library_is_named(demo_data, tmp_path, run_tool):
    (tmp_path / 'sitecustomize.py').write_text(
        'import importlib.util as u\nfind = u.find_spec\n'
        "u.find_spec = lambda name, *rest: None if name == 'mmseg' else find(name, *rest)\n"
    )
    done = run_tool('train.py', CUE, cwd=demo_data, fresh=True,
                    PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))  # fmt: skip
    assert done.returncode == 1
    assert 'error: this config needs mmseg, which is not installed: install onedl-mmsegmentation' in done.stderr


def test_check_of_the_data(demo_data, tmp_path, run_tool):
    (tmp_path / 'data').symlink_to(demo_data / 'data')
    broken_image(tmp_path / 'broken/train')
    options = ('--cfg-options', 'train_dataloader.dataset.data_root=broken')
    done = run_tool('check_data.py', DIGITS, '--workers', 1, '--json', 'found.json', *options, cwd=tmp_path,
                    fresh=True)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert [line for line in done.stdout.splitlines() if ': ' in line] == [
        'error: broken/train/7/0.png: is empty (0 bytes): download it again',
        'train: 10 images, 1 error, 0 warnings',
        'val and test: 360 images, 0 errors, 0 warnings',
    ]
    reports = json.loads((tmp_path / 'found.json').read_text())
    assert [one['file'] for one in reports[0]['findings']] == ['broken/train/7/0.png']
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'broken', 'found.json'}


@pytest.mark.parametrize(
    ('args', 'code', 'says'),
    [
        (('--workers', '2'), 0, ''),
        (('--json', 'nowhere/found.json'), 2, 'the folder of --json nowhere/found.json does not exist'),
    ],
)
def test_exit_code_of_the_check_of_the_data(args, code, says, demo_data, run_tool):
    done = run_tool('check_data.py', DIGITS, *args, cwd=demo_data)
    assert done.returncode == code, done.stderr
    assert says in done.stderr


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_say_which_arguments_they_need(script, tmp_path, run_tool):
    done = run_tool(script, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith('error: ')
    assert 'CONFIG' in done.stderr


def test_number_of_gpus_is_checked(tmp_path, run_tool):
    done = run_tool('dist_train.sh', DIGITS, 'two', cwd=tmp_path)
    assert done.returncode == 1
    assert "NUM_GPUS must be a number of at least 1, got 'two'" in done.stderr


def test_complexity_needs_something_to_count(tmp_path, run_tool):
    done = run_tool('analysis/complexity.py', cwd=tmp_path)
    assert done.returncode == 2
    assert 'name a config' in done.stderr
    done = run_tool('analysis/complexity.py', 'nothing.py', cwd=tmp_path)
    assert done.returncode == 1
    assert "error: config 'nothing.py' does not exist" in done.stderr


@pytest.mark.parametrize('biased', [True, False])
def test_plain_weights_become_a_checkpoint_of_the_same_function(biased, tmp_path, run_tool):
    torch.manual_seed(0)
    plain = torchvision.models.resnet50(num_classes=1000).eval()
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    config = ROOT / f'configs/imagenet/{"sb-" if biased else ""}resnet50_b256-100e_in1k.py'
    done = run_tool('convert_weights.py', config, 'plain.pth', 'out.pth', cwd=tmp_path, fresh=biased)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'out.pth: {25_986_620 if biased else 25_557_032:,} parameters')
    model = build_model(Config.fromfile(config)).eval()
    check_fit('out.pth', model.state_dict(), load_state_dict(tmp_path / 'out.pth'))
    model.load_state_dict(load_state_dict(tmp_path / 'out.pth'))
    image = torch.randn(1, 3, 64, 96, dtype=torch.double)  # float32 rounds differently from processor to processor
    model.double(), plain.double()
    with torch.no_grad():
        torch.testing.assert_close(model.head(model.neck(model.backbone(image))), plain(image), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ((DIGITS, 'none.pth', 'out.pth'), "checkpoint 'none.pth' does not exist"),
        ((DIGITS, 'plain.pth', 'none/out.pth'), "the folder of the output 'none/out.pth' does not exist"),
        ((CUE, 'plain.pth', 'out.pth'), 'is not a classifier with an mmsb backbone'),
        ((DIGITS, 'plain.pth', 'out.pth'), "checkpoint 'plain.pth' does not fit"),
        ((DIGITS, 'headless.pth', 'out.pth'), "checkpoint 'headless.pth' does not fit: it has no fc.weight"),
    ],
)
def test_weights_that_cannot_be_converted(arguments, said, tmp_path, run_tool):
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / 'plain.pth')
    model = build_model(Config.fromfile(DIGITS))
    torch.save(model.backbone.state_dict(), tmp_path / 'headless.pth')
    done = run_tool('convert_weights.py', *arguments, cwd=tmp_path)
    assert done.returncode == 1
    *before, last = done.stderr.splitlines()
    assert said in last
    assert not [line for line in before if 'error' in line.lower() or 'Traceback' in line]  # stock mmcv may warn
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    ('config', 'size'),
    [
        (DIGITS, None),
        (CUE, (64, 64)),
        (SCENES, (128, 128)),
    ],
)
def test_predictions_are_drawn(config, size, demo_data, tmp_path, run_tool):
    model = build_model(Config.fromfile(config))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    two = scenes.options('test', 2) if config == SCENES else ['test_dataloader.dataset.indices=2']
    options = ('--work-dir', tmp_path / 'run', '--cfg-options', *two,
               'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')  # fmt: skip
    done = run_tool('test.py', config, tmp_path / 'weights.pth', '--show-dir', tmp_path / 'drawn', *options,
                    cwd=demo_data, fresh=config != DIGITS)  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = list((tmp_path / 'drawn').rglob('*.png'))
    assert len(drawn) == 2
    if size is not None:
        width, height = Image.open(drawn[0]).size
        assert (height, width // round(width / height)) == size, 'the image, alone or beside the truth'


def test_pictures_of_equal_names_are_drawn_apart_and_as_they_were_read(tmp_path, run_tool):
    """In two folders, and turned by EXIF, which the config ignores: boxes are drawn on what the network has read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images, truth = [], []
    for number, name in enumerate(('one/a.jpg', 'two/a.jpg', 'two/a.png'), 1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (96, 64), (0, 0, 200)).save(tmp_path / name, exif=exif)
        images.append(dict(id=number, file_name=name, width=96, height=64))
        box = dict(bbox=[8, 8, 40, 20], area=800, iscrowd=0)
        truth.append(dict(id=number, image_id=number, category_id=1, **box))
    categories = [dict(id=i + 1, name=str(i)) for i in range(10)]
    file = tmp_path / 'truth.json'
    file.write_text(json.dumps(dict(images=images, annotations=truth, categories=categories)))
    torch.save(dict(state_dict=build_model(Config.fromfile(SCENES)).state_dict()), tmp_path / 'weights.pth')
    data = dict(data_root=f'{tmp_path}/', ann_file='truth.json', data_prefix=dict(img=''))
    config = tmp_path / 'config.py'
    config.write_text(f"""_base_ = {str(SCENES)!r}
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset={data!r})
test_evaluator = dict(ann_file={str(file)!r})
test_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile', color_type='color_ignore_orientation'), dict(type='Resize', scale_factor=1.0),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
""")
    done = run_tool('test.py', config, tmp_path / 'weights.pth', '--show-dir', 'drawn', '--work-dir', 'run',
                    cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = {str(path.relative_to(tmp_path / 'drawn')): path for path in (tmp_path / 'drawn').rglob('*.*')}
    assert sorted(drawn) == ['one/a.jpg', 'two/a.jpg', 'two/a_png.png']
    assert {Image.open(path).size for path in drawn.values()} == {(2 * 96, 64)}, 'the truth beside the prediction'


def test_the_demo_names_a_training_that_is_killed_at_once(tmp_path, monkeypatch):
    train = runpy.run_path(str(ROOT / 'tools/demo.py'))['train']
    silent = tmp_path / 'python'
    silent.write_text('#!/bin/sh\nkill -9 $$\n')
    silent.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(silent))
    with pytest.raises(RuntimeError, match='training of net failed: exit code -9'):
        asyncio.run(train('net', CUE, tmp_path / 'run', 1, {}))


@pytest.mark.parametrize('name', ['human_consistency', 'timm_networks'])
def test_a_command_that_has_moved_names_the_new_one(name, tmp_path, run_tool):
    done = run_tool(f'analysis/{name}.py', 'resnet18', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith(f'error: this command is now python -m benchmarks.{name}')
    assert run_tool(f'benchmarks.{name}', '--help', cwd=tmp_path).returncode == 0
