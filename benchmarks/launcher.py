"""Images a second of a training: by the stock launchers, by ours, and by a bare PyTorch loop.

taskset -c 1 python -m benchmarks.launcher imagenet --data DATA --json launcher.json     # DATA: a folder for each class
taskset -c 1 python -m benchmarks.launcher cifar --data DATA                             # train.npz and test.npz
taskset -c 1 python -m benchmarks.launcher coco --data DATA                              # images/, annotations/
python -m benchmarks.launcher detector --data DATA      # Faster R-CNN at 800 x 1333, on the demo's scenes, made in DATA

Each round starts every case once, one after the other, so that whatever else the machine does meets them all. The first
iterations of each start do not count. The file of --json is written after each. The bare loop has the network, data,
workers and options of `sb, ours --fast`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from mmsb.analysis.machine import describe, find_device
from mmsb.analysis.report import markdown, write_json
from mmsb.analysis.run_logs import SCALARS, merge
from mmsb.configs import build_model, read_config
from mmsb.datasets import digits
from mmsb.engine.fast import BF16
from mmsb.engine.launcher import run_tool
from mmsb.options import positive_integer

ROOT = Path(__file__).resolve().parents[1]
WARMUP = 3
BARE = 'sb, bare loop'
COLLATED = ('imagenet', 'cifar')  # tasks whose batches are one tensor, which the bare loop needs
CASES = {  # name: (whether the network has the bias, launcher, flags)
    'plain, stock launcher': (False, 'stock', []),
    'plain, ours': (False, 'ours', []),
    'sb, ours': (True, 'ours', []),
    'plain, ours --fast': (False, 'ours', ['--fast']),
    'sb, ours --fast': (True, 'ours', ['--fast']),
    BARE: (True, 'bare', []),
}
TASKS = dict(  # name: (library, batch size, config; BIAS and DATA are filled in)
    imagenet=('mmpretrain', 8, """
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
model = dict(backbone=BIAS)
dataset = dict(_delete_=True, type='CustomDataset', data_root=DATA, pipeline={{_base_.train_pipeline}})
"""),
    cifar=('mmpretrain', 64, f"""
_base_ = '{ROOT}/configs/cifar100/sb-resnet38_b64-300e_cifar100.py'
model = dict(backbone=BIAS)
dataset = dict(type='mmsb.CIFAR100Arrays', data_root=DATA)
"""),
    coco=('mmdet', 4, f"""
_base_ = '{ROOT}/configs/_base_/coco128_faster-rcnn_12e.py'
model = dict(backbone=BIAS)
dataset = dict(data_root=DATA)
"""),
    detector=('mmdet', 4, """
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=BIAS, roi_head=dict(bbox_head=dict(num_classes=10)))
dataset = dict(
    _delete_=True,
    type='CocoDataset',
    data_root=DATA,
    metainfo=dict(classes=tuple('0123456789')),
    ann_file='digits-scenes/annotations/instances_train.json',
    data_prefix=dict(img='digits-scenes/images/train/'),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=SCALE, keep_ratio=False),
        dict(type='PackDetInputs'),
    ],
)
"""),
)  # fmt: skip
SHORT = """
train_dataloader = dict(batch_size=BATCH, num_workers=WORKERS, persistent_workers=WORKERS > 0, dataset=dataset)
val_cfg = val_dataloader = val_evaluator = test_cfg = test_dataloader = test_evaluator = param_scheduler = None
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=10**9)
default_hooks = dict(checkpoint=None, logger=dict(interval=1))
log_processor = dict(window_size=1, by_epoch=False)
"""


def backbone_of(task: str, biased: bool) -> str:
    """Return the diff of the backbone: plain is upstream's own, but for CIFAR, whose ResNet upstream does not have."""
    if task == 'cifar':
        return 'dict()' if biased else 'dict(spatial_bias=None)'
    kind = 'mmsb.SBResNet' if biased else 'ResNet'
    return f'dict(type={kind!r}, init_cfg=None)'  # random weights: nothing to download


def write_config(path: Path, options: argparse.Namespace, biased: bool) -> Path:
    """Write the config of a case, which the stock launchers read too."""
    _, batch, text = TASKS[options.task]
    values = dict(BIAS=backbone_of(options.task, biased), DATA=repr(str(Path(options.data).resolve())),
                  BATCH=str(options.batch or batch), WORKERS=str(options.workers),
                  ITERATIONS=str(WARMUP + options.iterations), SCALE=str(tuple(options.size[::-1])))  # fmt: skip
    text += SHORT
    for name, value in values.items():
        text = text.replace(name, value)
    path.write_text(text)
    return path


def run_case(name: str, options: argparse.Namespace, folder: Path) -> tuple[list[float], list[float]]:
    """Train in a process of its own; returns the seconds of each iteration, and those spent waiting for its data.

    Raises:
        RuntimeError: the training failed.
    """
    biased, launcher, flags = CASES[name]
    config = write_config(folder / 'case.py', options, biased)
    work_dir = folder / f'{time.monotonic_ns()}'
    library = TASKS[options.task][0]
    if launcher == 'stock':
        script = Path(find_spec(library).origin).parent / '.mim/tools/train.py'
        command = ['-m', 'mmsb.ops', str(script), str(config), '--work-dir', str(work_dir)]
    elif launcher == 'ours':
        command = [str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir), *flags]
    else:
        command = ['-m', 'benchmarks.launcher', options.task, '--bare', str(folder / 'fast.py')]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{name} failed: {done.stderr[-2000:]}')
    if launcher == 'bare':
        lines = json.loads(done.stdout.splitlines()[-1])
    else:
        lines, _ = merge([next(work_dir.glob(SCALARS))])
        if name == 'sb, ours --fast':
            (folder / 'fast.py').write_text((work_dir / config.name).read_text())
    return [line['time'] for line in lines[WARMUP:]], [line['data_time'] for line in lines[WARMUP:]]


def bare_loop(path: str) -> list[dict]:
    """Train by a loop without any framework, as the dumped config of ours says; returns `time` and `data_time`."""
    cfg = read_config(path)
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    model.to(find_device()).train()
    if cfg.get('channels_last'):
        model.to(memory_format=torch.channels_last)
    loader = cfg.train_dataloader
    loader = DataLoader(
        DATASETS.build(loader.dataset), loader.batch_size, shuffle=True, num_workers=loader.num_workers,
        persistent_workers=loader.num_workers > 0, collate_fn=default_collate, drop_last=True,
    )  # fmt: skip
    options = {key: value for key, value in cfg.optim_wrapper.optimizer.items() if key != '_scope_'}
    optimizer = getattr(torch.optim, options.pop('type'))(model.parameters(), **options)
    times, batches, start = [], iter(loader), time.perf_counter()
    while len(times) < cfg.train_cfg.max_iters:
        data = next(batches, None)
        if data is None:
            batches = iter(loader)
            continue
        loaded = time.perf_counter()
        with torch.autocast(find_device().type, torch.bfloat16, enabled=cfg.optim_wrapper.type == BF16):
            data = model.data_preprocessor(data, True)
            if cfg.get('channels_last'):
                data['inputs'] = data['inputs'].contiguous(memory_format=torch.channels_last)
            loss = sum(value for key, value in model(**data, mode='loss').items() if 'loss' in key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        now = time.perf_counter()
        times.append(dict(time=now - start, data_time=loaded - start))
        start = now
    return times


def measure(options: argparse.Namespace) -> Iterator[dict]:
    """Run all rounds; yields after each start what each case has: images a second, share of waiting for data, seconds.

    Raises:
        RuntimeError: a training failed.
    """
    cases = options.cases or [name for name in CASES if name != BARE or options.task in COLLATED]
    found = {name: dict(images_per_s=[], data_share=[], seconds=[]) for name in cases}
    batch = options.batch or TASKS[options.task][1]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name in cases:
                times, waits = run_case(name, options, Path(folder))
                found[name]['images_per_s'].append(batch / statistics.median(times))
                found[name]['data_share'].append(sum(waits) / sum(times))
                found[name]['seconds'].append(times)
                print(f'{name}: {found[name]["images_per_s"][-1]:.2f} images/s', file=sys.stderr, flush=True)
                yield found


def table(found: dict) -> str:
    """Make the table: median and range over rounds, and the ratio to the first case within each round."""
    first = next(iter(found.values()))['images_per_s']
    rows = []
    for name, case in found.items():
        speeds = case['images_per_s']
        if not speeds:  # the run was ended before
            continue
        ratio = statistics.median(one / other for one, other in zip(speeds, first, strict=False))
        share = statistics.median(case['data_share'])
        spread = f'{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})'
        rows.append([name, spread, f'{ratio:.2f}', f'{100 * share:.0f} %'])
    return markdown(['training', 'images/s', 'relative', 'waits for data'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.launcher', description=__doc__.splitlines()[0])
    parser.add_argument('task', choices=TASKS)
    parser.add_argument('--data', default='data')
    parser.add_argument('--cases', nargs='+', choices=CASES, help='compare with the first of these (default: all)')
    parser.add_argument('--size', nargs=2, type=int, default=[800, 1333], help="of the images of 'detector', in px")
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--iterations', type=int, default=10, help=f'of a round, after {WARMUP} that do not count')
    parser.add_argument('--batch', type=int, help='images of an iteration')
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--json', help='write all samples')
    parser.add_argument('--bare', metavar='CONFIG', help=argparse.SUPPRESS)  # a case in its own process
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare_loop(options.bare)))
        return
    for name in ('rounds', 'iterations'):
        positive_integer(f'--{name}', getattr(options, name))
    if options.task == 'detector':
        digits.write(options.data)
    if not Path(options.data).is_dir():
        raise FileNotFoundError(f'--data {options.data!r} does not exist')
    about = dict(machine=describe(find_device(), seed=0), task=options.task, workers=options.workers)
    for found in measure(options):
        if options.json:
            write_json(options.json, about | dict(results=found))
    print(table(found))


if __name__ == '__main__':
    run_tool(main)
