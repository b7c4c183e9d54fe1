"""The demo: shows, within minutes, a task that spatial bias solves, and a plain ResNet and global context can't.

Trains the networks on the mirror through tools/train.py, prints a table, and saves plots of learning curves and
predictions to work_dirs/demo.

    python tools/demo.py
"""

import argparse
import asyncio
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.device import get_device
from PIL import Image

from mmsb.analysis.run_logs import SCALARS, merge
from mmsb.checkpoints.load import load_state_dict
from mmsb.configs import build_model
from mmsb.datasets import digits
from mmsb.engine.launcher import run_tool
from mmsb.files import write_figure

ROOT = Path(__file__).resolve().parents[1]
OUT = Path('work_dirs/demo')
NETWORKS = {
    'ResNet-11': 'resnet11_b16-250i_digits-mirror',
    'GC-ResNet-11': 'gc-resnet11_b16-250i_digits-mirror',
    'SB-ResNet-11': 'sb-resnet11_b16-250i_digits-mirror',
}
COLOURS = ('tab:gray', 'tab:green', 'tab:red')
CHANCE = 100 / len(digits.CUE_COLOURS)


async def train(name: str, config: Path, work_dir: Path, threads: int, steps: dict[str, str]) -> float:
    """Train through the launcher, showing each validation; return the wall time in seconds."""
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir)]
    if get_device() == 'cpu':
        command.append('--fast')  # on a GPU it compiles, for longer than this training takes
    environment = {'OMP_NUM_THREADS': str(threads), **os.environ, 'PYTHONWARNINGS': 'ignore'}
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, limit=2**20
    )
    log_path = work_dir / 'console.log'
    try:
        with log_path.open('wb') as log:
            async for line in process.stdout:
                log.write(line)
                line = line.decode(errors='replace')
                if trained := re.search(r'Iter\(train\) \[ *(\d+)/(\d+)\].*eta: ([\d:]+)', line):
                    steps[name] = f'{name} {trained[1]}'
                    show(f'  step of {trained[2]}: {", ".join(steps.values())}; {trained[3]} left', passing=True)
                elif accuracy := re.search(r'Iter\(val\).*aAcc: ([\d.]+)', line):
                    show(f'  {steps[name].replace(name, f"{name}: step")}, pixel accuracy {float(accuracy[1]):5.1f} %')
        await process.wait()
    finally:
        if process.returncode is None:  # the other training has failed
            process.terminate()
    if process.returncode:
        said = log_path.read_text(errors='replace').strip().splitlines() or [f'exit code {process.returncode}']
        raise RuntimeError(f'training of {name} failed: {said[-1].removeprefix("error: ")} (log: {log_path})')
    return time.perf_counter() - start


async def train_all(configs: dict[str, Path]) -> list[float]:
    """Train the networks side by side, each on its share of the cores; return their wall times in seconds."""
    threads, steps = max(1, torch.get_num_threads() // len(configs)), {}
    return await asyncio.gather(*(train(name, path, OUT / path.stem, threads, steps) for name, path in configs.items()))


def show(line: str, passing: bool = False) -> None:
    """Print a line; a passing one is shown only on a terminal, and replaced by the next."""
    if not passing:
        print(f'\r{line:<60}' if sys.stdout.isatty() else line, flush=True)
    elif sys.stdout.isatty():
        print(f'\r{line:<60}', end='', flush=True)


def curve(work_dir: Path) -> tuple[list[int], list[float]]:
    """Read the steps of the validations and their pixel accuracies in %."""
    _, validations = merge([max(work_dir.glob(SCALARS))])
    return [one['step'] for one in validations], [one['aAcc'] for one in validations]


def plot_curves(curves: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout='constrained')
    axes = figure.subplots()
    for (name, (steps, accuracies)), colour in zip(curves.items(), COLOURS, strict=True):
        axes.plot(steps, accuracies, marker='o', markersize=3, label=name, color=colour)
    axes.axhline(CHANCE, linestyle=':', color='black', label='chance')
    axes.set(xlabel='training step (16 images each)', ylabel='pixel accuracy on validation scenes (%)', ylim=(0, 103))
    axes.set_title('The mirror: which colour stands in the mirrored place?', fontsize='medium')
    axes.legend(loc='center right')
    write_figure(path, figure)


@torch.no_grad()
def predict(config: Config, checkpoint: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    """Predict the class of every pixel of RGB images, (64, 64, 3) each."""
    model = build_model(config).eval()
    model.load_state_dict(load_state_dict(str(checkpoint), own=True))
    batch = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) for image in images]  # BGR, as OpenCV
    data = model.data_preprocessor(dict(inputs=batch), training=False)
    logits = model.encode_decode(data['inputs'], [dict(img_shape=image.shape[:2]) for image in images])
    return list(logits.argmax(1).numpy())


def draw_predictions(rows: dict[str, list[np.ndarray]], images: list, masks: list, path: Path) -> None:
    """Draw the scenes and, below them, the digits in the colours of their true and predicted classes."""
    palette = np.array(list(digits.CUE_COLOURS.values()), np.uint8)
    figure = Figure(figsize=(1.5 * len(images) + 1.2, 1.5 * (len(rows) + 1)), layout='constrained')
    axes = figure.subplots(len(rows) + 1, len(images))
    for column, (image, mask) in enumerate(zip(images, masks, strict=True)):
        axes[0, column].imshow(image)
        for row, maps in enumerate(rows.values(), start=1):
            canvas = (image * 0.35).astype(np.uint8)
            on_digit = mask != digits.IGNORE
            canvas[on_digit] = palette[maps[column][on_digit]]
            axes[row, column].imshow(canvas)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], ['scene', *rows], strict=True):
        axis.set_ylabel(name)
    write_figure(path, figure, dpi=80)


def main() -> None:
    argparse.ArgumentParser(description='Show what spatial bias does, in minutes; writes work_dirs/demo.').parse_args()
    logging.disable(logging.WARNING)  # the libraries warn about operations that this task does not use
    warnings.simplefilter('ignore')
    digits.write('data/demo')
    OUT.mkdir(parents=True, exist_ok=True)
    paths = sorted(Path('data/demo/digits-mirror/images/val').glob('*.png'))[:6]
    images = [np.asarray(Image.open(path)) for path in paths]
    masks = [np.asarray(Image.open(str(path).replace('images', 'masks'))) for path in paths]
    table, curves, pictures = [], {}, {'truth': masks}
    print('training three networks on 4,000 scenes side by side; logs in', OUT)
    configs = {name: ROOT / f'configs/demo/{stem}.py' for name, stem in NETWORKS.items()}
    for (name, config_path), seconds in zip(configs.items(), asyncio.run(train_all(configs)), strict=True):
        work_dir = OUT / config_path.stem
        config = Config.fromfile(config_path)
        params = sum(parameter.numel() for parameter in build_model(config).parameters())
        curves[name] = curve(work_dir)
        checkpoint = work_dir / (work_dir / 'last_checkpoint').read_text().strip()
        pictures[name] = predict(config, checkpoint, images)
        table.append(f'{name:<14}{curves[name][1][-1]:>14.1f} %{params:>12,}{seconds:>9.0f} s')
    plot_curves(curves, OUT / 'learning_curve.png')
    draw_predictions(pictures, images, masks, OUT / 'predictions.png')
    print(f'\n{"network":<14}{"pixel accuracy":>16}{"parameters":>12}{"time":>11}')
    print('\n'.join(table))
    print(f'\nchance is {CHANCE:.0f} %; pictures: {OUT}/learning_curve.png, {OUT}/predictions.png')


if __name__ == '__main__':
    run_tool(main)
