"""Two processes connected by gloo train like one process with the same global batch."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from scenes import FOUR_SCENES

CONFIG = """
_base_ = '{digits}'
custom_imports = dict(imports=['rank_losses'])
custom_hooks = [dict(type='RankLosses')]
model = dict(backbone=dict(norm_eval=True))  # batch statistics are per process: they would differ
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.05, momentum=0.9))
param_scheduler = None
train_cfg = dict(max_epochs=2)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=48))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=48))
"""
HOOK = """
import json
import os
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class RankLosses(Hook):
    def before_train(self, runner):
        self.losses = []
        if runner.cfg.get('fail_on_rank') == get_rank():
            raise RuntimeError('the disk of this process is broken')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss']))
        first = os.environ.get('TORCHELASTIC_RESTART_COUNT') == '0'
        if runner.cfg.get('kill_rank') == get_rank() and runner.iter == 4 and first:
            os.kill(os.getpid(), 9)

    def after_train(self, runner):
        with open(f'{runner.work_dir}/losses{get_rank()}.json', 'w') as file:
            json.dump(self.losses, file)
"""
WEIGHTS = """
import json
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class RankWeights(Hook):
    def before_train(self, runner):
        self.losses = []
        self.start = self.weights(runner)

    def weights(self, runner):
        parameters = runner.model.module.named_parameters()
        return {name: value.detach().double().norm().item() for name, value in parameters}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss']))

    def after_train(self, runner):
        content = dict(losses=self.losses, start=self.start, end=self.weights(runner))
        with open(f'{runner.work_dir}/rank{get_rank()}.json', 'w') as file:
            json.dump(content, file)
"""
SRUN = """
while [ "${1#--}" != "$1" ]; do
    case $1 in --ntasks=*) export SLURM_NTASKS=${1#*=} ;; esac
    shift
done
export SLURM_NODELIST=node1
for SLURM_PROCID in $(seq 0 $((SLURM_NTASKS - 1))); do
    export SLURM_PROCID SLURM_LOCALID=$SLURM_PROCID
    "$@" &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid" || exit 1; done
"""
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def folder(demo_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('distributed')
    (folder / 'data').symlink_to(demo_data / 'data')
    (folder / 'rank_losses.py').write_text(HOOK)
    digits = ROOT / 'configs/demo/sb-resnet11_b64-10e_digits.py'
    (folder / 'config.py').write_text(CONFIG.format(digits=digits))
    return folder


@pytest.fixture(scope='module')
def environment(folder) -> dict[str, str]:
    return dict(PYTHONPATH=f'{ROOT}:{folder}')


@pytest.fixture(scope='module')
def work_dirs(folder, environment, run_tool) -> dict[int, Path]:
    """Work dirs of the same training with one process and with two."""
    runs = {
        1: ('train.py', 'config.py', '--cfg-options', 'train_dataloader.batch_size=16'),
        2: ('dist_train.sh', 'config.py', 2, '--check-data', '--cfg-options', 'train_dataloader.batch_size=8'),
    }
    for count, (tool, *args) in runs.items():
        done = run_tool(tool, *args, f'work_dir={folder / str(count)}', cwd=folder, fresh=count == 2, **environment)
        assert done.returncode == 0, done.stderr
    return {count: folder / str(count) for count in runs}


def test_losses_are_those_of_one_process(work_dirs):
    one = json.loads((work_dirs[1] / 'losses0.json').read_text())
    two = [json.loads((work_dirs[2] / f'losses{rank}.json').read_text()) for rank in (0, 1)]
    assert len(one) == 6
    assert two[0] != two[1]
    mean = (torch.tensor(two[0]) + torch.tensor(two[1])) / 2
    torch.testing.assert_close(mean, torch.tensor(one), rtol=1e-4, atol=1e-5)
    assert one[-1] < one[0]


def test_weights_are_those_of_one_process(work_dirs):
    one, two = (
        torch.load(work_dirs[count] / 'epoch_2.pth', map_location='cpu', weights_only=False)['state_dict']
        for count in (1, 2)
    )
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5)


def test_slurm_without_gpus_trains_as_torchrun_does(work_dirs, folder, environment, run_tool):
    stand_ins = folder / 'slurm'
    stand_ins.mkdir()
    for name, text in dict(srun=SRUN, scontrol='echo 127.0.0.1').items():
        (stand_ins / name).write_text(f'#!/bin/sh\n{text}\n')
        (stand_ins / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    slurm = dict(PATH=f'{stand_ins}:{os.environ["PATH"]}', GPUS='0', TASKS='2', MASTER_PORT=str(port))
    options = ('--cfg-options', 'train_dataloader.batch_size=8', f'work_dir={folder / "slurm-run"}')
    done = run_tool(
        'slurm_train.sh', 'cpu', 'name', 'config.py', *options, cwd=folder, fresh=True, **environment, **slurm
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        torch.load(path / 'epoch_2.pth', map_location='cpu', weights_only=False)['state_dict']
        for path in (work_dirs[2], folder / 'slurm-run')
    )
    assert all(torch.equal(value, two[key]) for key, value in one.items())


FAST = """
_base_ = 'config.py'
custom_hooks = [dict(type='RankLosses'), dict(type='EMAHook', momentum=0.1)]
optim_wrapper = dict(accumulative_counts=2)
channels_last = True
"""


def test_fast_options_train_two_processes_like_one(folder, environment, run_tool):
    """In fp32, so that only the order of sums differs; with accumulation and a moving average."""
    (folder / 'fast.py').write_text(FAST)
    options = ('--cfg-options', 'optim_wrapper.optimizer.fused=True')
    runs = {1: ('train.py', 'fast.py', *options, 'train_dataloader.batch_size=16'),
            2: ('dist_train.sh', 'fast.py', 2, *options, 'train_dataloader.batch_size=8')}  # fmt: skip
    for count, (tool, *args) in runs.items():
        done = run_tool(tool, *args, f'work_dir={folder / f"fast{count}"}', cwd=folder, **environment)
        assert done.returncode == 0, done.stderr
        assert 'strides' not in done.stderr  # of DDP's buckets and the gradients
    one, two = (torch.load(folder / f'fast{count}/epoch_2.pth', weights_only=False) for count in (1, 2))
    for name in ('state_dict', 'ema_state_dict'):
        for key, value in one[name].items():
            torch.testing.assert_close(two[name][key], value, rtol=1e-3, atol=1e-5)
    assert not torch.equal(one['state_dict']['head.fc.weight'], one['ema_state_dict']['module.head.fc.weight'])


def test_fast_processes_start_again_where_they_were(folder, environment, run_tool):
    (folder / 'fast-killed.py').write_text(FAST + 'kill_rank = 1\n')
    (folder / 'fast-whole.py').write_text(FAST)
    for name in ('whole', 'killed'):
        args = ('--amp', 'bf16', '--fast', '--cfg-options', 'train_dataloader.batch_size=8')
        done = run_tool('dist_train.sh', f'fast-{name}.py', 2, *args, f'work_dir={folder / f"fast-{name}"}', cwd=folder,
                        MAX_RESTARTS='1', **environment)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ('resumed epoch: 1, iter: 3' in done.stdout) == (name == 'killed')
    one, two = (torch.load(folder / f'fast-{name}/epoch_2.pth', weights_only=False) for name in ('whole', 'killed'))
    for name in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, two[name][key]) for key, value in one[name].items())


def test_testing_with_two_processes_gives_the_same_accuracy(work_dirs, folder, environment, run_tool):
    figures = []
    for tool, extra in (('test.py', ()), ('dist_test.sh', (2,))):
        work_dir = folder / f'test-{tool}'
        options = ('--cfg-options', f'work_dir={work_dir}', 'test_dataloader.batch_size=8')
        done = run_tool(tool, 'config.py', work_dirs[1] / 'epoch_2.pth', *extra, *options, cwd=folder, **environment)
        assert done.returncode == 0, done.stderr
        figures.append(json.loads(next(work_dir.glob('*/*.json')).read_text().splitlines()[-1])['accuracy/top1'])
    assert figures[0] == figures[1]


def test_both_processes_draw_their_images(work_dirs, folder, environment, run_tool):
    options = ('--cfg-options', f'work_dir={folder}/drawing', 'test_dataloader.dataset.indices=5')
    done = run_tool('dist_test.sh', 'config.py', work_dirs[1] / 'epoch_2.pth', 2, '--show-dir', folder / 'drawn',
                    *options, cwd=folder, **environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((folder / 'drawn').rglob('*.png'))) == 5


def test_a_mistake_is_said_once_and_both_processes_stop(folder, environment, run_tool):
    done = run_tool(
        'dist_train.sh', 'config.py', 2, '--cfg-options', 'model.backbone.depth=12', cwd=folder, **environment
    )
    assert done.returncode == 1
    assert done.stderr.count('depth must be 9n + 2') == 1


def test_bad_data_are_told_once_and_stop_both_processes(folder, environment, run_tool):
    work_dir = folder / 'bad'
    (folder / 'bad.txt').write_text('0/0000.png 12\n' * 48)
    options = ('--cfg-options', f'train_dataloader.dataset.ann_file={folder / "bad.txt"}', f'work_dir={work_dir}')
    done = run_tool('dist_train.sh', 'config.py', 2, '--check-data', *options, cwd=folder, **environment)
    assert done.returncode == 1
    assert done.stdout.count('train: 48 images, ') == 1
    assert done.stderr.count('error: the data have ') == 1
    assert 'error (process 1)' not in done.stderr
    assert not work_dir.exists()


def test_a_failure_of_one_process_is_told(folder, environment, run_tool):
    options = ('--cfg-options', 'custom_hooks.0.type=RankLosses', f'work_dir={folder / "failed"}')
    (folder / 'failing.py').write_text("_base_ = 'config.py'\nfail_on_rank = 1\n")
    done = run_tool('dist_train.sh', 'failing.py', 2, *options, cwd=folder, **environment)
    assert done.returncode == 1
    assert 'error (process 1): the disk of this process is broken' in done.stderr


def test_max_restarts_starts_all_again_where_they_were(folder, environment, work_dirs, run_tool):
    (folder / 'killed.py').write_text("_base_ = 'config.py'\nkill_rank = 1\n")
    options = ('--cfg-options', 'train_dataloader.batch_size=8', f'work_dir={folder / "killed"}')
    done = run_tool('dist_train.sh', 'killed.py', 2, *options, cwd=folder, MAX_RESTARTS='1', **environment)
    assert done.returncode == 0, done.stderr
    assert 'resumed epoch: 1, iter: 3' in done.stdout
    one, two = (
        torch.load(path / 'epoch_2.pth', map_location='cpu', weights_only=False)['state_dict']
        for path in (work_dirs[2], folder / 'killed')
    )
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ('name', 'schedule'),
    [
        ('faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes', 'max_epochs=1, val_interval=1'),
        ('fpn_sb-resnet20_b8-200i_digits-scenes', 'max_iters=2, val_interval=2'),
    ],
)
def test_detection_and_segmentation_learn_the_same_on_both_processes(
    name, schedule, demo_data, tmp_path, environment, run_tool
):
    (tmp_path / 'rank_weights.py').write_text(WEIGHTS)
    (tmp_path / 'config.py').write_text(f"""
_base_ = '{ROOT}/configs/demo/{name}.py'
custom_imports = dict(imports=['rank_weights'])
custom_hooks = [dict(type='RankWeights')]
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(indices=16))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=8))
train_cfg = dict({schedule})
{FOUR_SCENES if 'rcnn' in name else ''}""")
    options = ('--work-dir', tmp_path / 'run')
    path = f'{ROOT}:{tmp_path}'
    done = run_tool(
        'dist_train.sh', tmp_path / 'config.py', 2, *options, cwd=demo_data, **{**environment, 'PYTHONPATH': path}
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f'run/rank{rank}.json').read_text()) for rank in (0, 1))
    assert len(one['losses']) == len(two['losses']) == 2
    assert all(a != b for a, b in zip(one['losses'], two['losses'], strict=True)), 'each has its own images'
    assert one['end'] == two['end']
    unchanged = [key for key, value in one['end'].items() if value == one['start'][key]]
    assert unchanged == []
    assert any('bias_conv' in key for key in one['end'])
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert ('bbox_mAP_50' if 'rcnn' in name else 'mIoU') in log.read_text()
