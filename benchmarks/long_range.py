"""The demo's long-range cue as a yardstick: which small networks see across the image, and at what cost.

python -m benchmarks.long_range                                   # 20 networks, seeds 0, 1, 2; one core
python -m benchmarks.long_range --networks ResNet-20 --seeds 0

Each network is cut off after its last block of stride 8; a 1x1 convolution and bilinear upsampling turn its features
into a class for each pixel. So no plain network sees as far as the patch that decides the class of the digits, which
`reach` computes and each record verifies with the gradients of the trained network. All trainings have the same steps,
scenes and recipe. A record is written when a training ends; what has a record is not trained again.
"""

import argparse
import json
import logging
import math
import shlex
import statistics
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

import mmsb
from benchmarks.long_range_networks import (
    DISTANCE_PX,
    NETWORKS,
    SCENE_PX,
    Segmenter,
    reach,
    receptive_field,
    windows,
)
from mmsb.analysis.complexity import count
from mmsb.analysis.machine import describe
from mmsb.analysis.report import markdown, write_json
from mmsb.datasets import digits
from mmsb.engine.launcher import run_tool
from mmsb.files import write_figure
from mmsb.options import choose, positive_integer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks/results/long-range'
FIGURE = ROOT / 'docs/figures/long_range.png'
STEPS = 250
BATCH, LEARNING_RATE, WARMUP_STEPS = 8, 6e-3, 20
MEAN, STD = 60, 40  # of pixels, as in the demo's config
TEST_SCENES, TEST_SEED = 200, 10**6
COLOURS = {
    'plain': 'gray',
    'SE': 'tab:blue',
    'GC': 'tab:green',
    'NL': 'tab:orange',
    'reduced NL': 'tab:olive',
    'BAT': 'tab:cyan',
    'SB': 'tab:red',
    'SE and SB': 'tab:purple',
}
CHANCE = 100 / len(digits.CUE_COLOURS)


def scenes(rng: np.random.Generator, drawn_digits: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """Draw scenes: normalised RGB images, (count, 3, H, W) in channels_last, and masks, (count, H, W)."""
    drawn = [digits.cue_scene(rng, drawn_digits, SCENE_PX) for _ in range(count)]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return (images.float() - MEAN) / STD, torch.from_numpy(np.stack([mask for _, mask in drawn])).long()


def learning_rate(step: int, steps: int) -> float:
    """Return the share of the learning rate: a linear warm-up, then half a cosine."""
    warmup = min(WARMUP_STEPS, steps // 5)
    rest = (step - warmup) / (steps - warmup)
    return (step + 1) / (warmup + 1) if step < warmup else (1 + math.cos(math.pi * rest)) / 2


def make_optimizer(segmenter: nn.Module, rate: float = LEARNING_RATE) -> torch.optim.Optimizer:
    segmenter.to(memory_format=torch.channels_last).train()
    return torch.optim.AdamW(segmenter.parameters(), rate, weight_decay=1e-4)


def train_step(segmenter: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, masks: Tensor) -> float:
    """Take a step in bf16 autocast; returns the loss."""
    with torch.autocast('cpu', torch.bfloat16):
        logits = segmenter(images)
    loss = F.cross_entropy(logits.float(), masks, ignore_index=digits.IGNORE)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(segmenter: Segmenter, seed: int, steps: int) -> list[float]:
    """Train on new scenes in each step; returns the losses."""
    rng, drawn = np.random.default_rng(seed), digits.load('train')[0]
    optimizer = make_optimizer(segmenter)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    losses = []
    for _ in range(steps):
        losses.append(train_step(segmenter, optimizer, *scenes(rng, drawn, BATCH)))
        schedule.step()
    return losses


@torch.no_grad()
def accuracy(segmenter: nn.Module) -> float:
    """Return the mean over classes of the share of digit pixels that are right, in %, on digits unseen in training.

    So a network that gives all pixels one class has exactly the accuracy of chance, whatever the scenes.
    """
    rng, drawn = np.random.default_rng(TEST_SEED), digits.load('val')[0]
    segmenter.eval()
    classes = len(digits.CUE_COLOURS)
    right, total = torch.zeros(classes), torch.zeros(classes)
    for _ in range(TEST_SCENES // BATCH):
        images, masks = scenes(rng, drawn, BATCH)
        on_digit = masks != digits.IGNORE
        truth, found = masks[on_digit], segmenter(images).argmax(1)[on_digit]
        total += truth.bincount(minlength=classes)
        right += truth[truth == found].bincount(minlength=classes)
    return 100 * float((right / total).mean())


def sees_patch(segmenter: Segmenter) -> bool:
    """Tell from the gradients whether the logits of any digit pixel depend on the patch."""
    images, masks = scenes(np.random.default_rng(TEST_SEED), digits.load('val')[0], BATCH)
    logits = segmenter.eval()(images.requires_grad_())
    of_class = logits.gather(1, masks.clamp(max=len(digits.CUE_COLOURS) - 1)[:, None])[:, 0]
    of_class[masks != digits.IGNORE].sum().backward()
    coloured = (images.amax(1) - images.amin(1)) * STD > 85  # all else is grey
    return bool(images.grad.abs().sum(1)[coloured].any())


def run(name: str, context: str, seed: int, steps: int) -> dict:
    """Train a network, and make its record."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    segmenter = Segmenter(name, context)
    layers = windows(Segmenter(name, 'plain'))
    losses = train(segmenter, seed, steps)
    record = dict(
        network=name,
        context=context,
        seed=seed,
        steps=steps,
        batch=BATCH,
        scene_px=SCENE_PX,
        distance_px=DISTANCE_PX,
        receptive_field_px=receptive_field(layers),  # of the convolutions alone, as is the reach
        reach_px=reach(layers),
        sees_patch=sees_patch(segmenter),
        chance=CHANCE,
        accuracy=round(accuracy(segmenter), 2),
        losses=[round(statistics.mean(losses[i : i + 10]), 4) for i in range(0, steps, 10)],
        seconds=round(time.perf_counter() - start, 1),
    )
    counted = count(segmenter, (3, SCENE_PX, SCENE_PX))  # last, for it takes the weights away
    return record | dict(
        params=counted.params, macs=counted.macs, ops=counted.ops, machine=about(name, seed, '--steps', str(steps))
    )


def about(name: str, seed: int, *arguments: str) -> dict:
    """Describe machine and versions, and the command that makes a record again."""
    arguments = ('--networks', name, '--seeds', str(seed), *arguments)
    command = shlex.join(['python', '-m', 'benchmarks.long_range', *arguments])
    versions = dict(timm=timm.__version__, mmsb=mmsb.__version__)
    return describe(torch.device('cpu'), seed) | versions | dict(command=command)


def time_steps(name: str, rounds: int = 15) -> dict:
    """Time training steps of a network with each context, in turn, so that a busy machine meets them all alike.

    The times are the processor's, which other programs lengthen less than those of the clock.
    """
    images, masks = scenes(np.random.default_rng(0), digits.load('train')[0], BATCH)
    segmenters = {context: Segmenter(name, context) for context in NETWORKS[name]}
    optimizers = {context: make_optimizer(segmenter) for context, segmenter in segmenters.items()}
    seconds: dict[str, list[float]] = {context: [] for context in segmenters}
    for _ in range(rounds + 1):
        for context, segmenter in segmenters.items():
            start = time.process_time()
            train_step(segmenter, optimizers[context], images, masks)
            seconds[context].append(time.process_time() - start)
    seconds = {context: values[1:] for context, values in seconds.items()}  # the first warms up
    return dict(
        network=name,
        cpu_ms={context: [round(1000 * value, 2) for value in values] for context, values in seconds.items()},
        relative={
            context: round(statistics.median(a / b for a, b in zip(values, seconds['plain'], strict=True)), 3)
            for context, values in seconds.items()
        },
        machine=about(name, 0),
    )


def path_of(folder: Path, *names) -> Path:
    return folder / ('_'.join(map(str, names)).lower().replace(' ', '-') + '.json')


def read_records(folder: Path, steps: int) -> dict[tuple[str, str], list[dict]]:
    """Read the records of trainings, in the order of the table; the key is network and context.

    Raises:
        ValueError: a record has another number of steps.
    """
    found: dict[tuple[str, str], list[dict]] = {(name, c): [] for name, contexts in NETWORKS.items() for c in contexts}
    for path in sorted(folder.glob('*_seed*.json')):
        record = json.loads(path.read_text())
        if record['steps'] != steps:
            raise ValueError(f'{path} has {record["steps"]} steps, not {steps}: choose another --results or --steps')
        found[record['network'], record['context']].append(record)
    return {key: records for key, records in found.items() if records}


def table(found: dict[tuple[str, str], list[dict]], times: dict[str, dict]) -> str:
    """Make the table of `read_records`; `times` has a record of `time_steps` for each network."""
    rows = []
    for (name, context), records in found.items():
        first, accuracies = records[0], [record['accuracy'] for record in records]
        rows.append([
            name, context, f'{first["reach_px"]} px', 'yes' if first['sees_patch'] else 'no',
            f'{statistics.mean(accuracies):.1f}', ', '.join(f'{value:.1f}' for value in accuracies),
            f'{first["params"]:,}', f'{first["ops"] / 1e6:.1f}', f'{times[name]["relative"][context]:.2f}',
            f'{first["steps"] * statistics.median(times[name]["cpu_ms"][context]) / 1000:.0f}',
        ])  # fmt: skip
    header = ['network', 'context', 'convolutions reach', 'sees the patch', 'accuracy, %', 'of the seeds',
              'parameters', 'operations, M', 'step time', 'training, CPU s']  # fmt: skip
    return markdown(header, rows)


def draw(found: dict[tuple[str, str], list[dict]], times: dict[str, dict], path: Path) -> None:
    """Draw a panel for each network: accuracy against the time of a training step; small dots are the seeds."""
    names = list(dict.fromkeys(name for name, _ in found))
    figure = Figure(figsize=(2.6 * len(names) + 0.6, 3.2), layout='constrained')
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for context in NETWORKS[name]:
            accuracies = [record['accuracy'] for record in found.get((name, context), [])]
            if accuracies:
                step, colour = times[name]['relative'][context], COLOURS[context]
                axis.plot([step] * len(accuracies), accuracies, '.', markersize=5, color=colour)
                axis.plot(step, statistics.mean(accuracies), 'o', markersize=10, alpha=0.5, color=colour)
        axis.axhline(CHANCE, linestyle=':', color='black', linewidth=1)
        axis.set(xlabel='time of a training step, plain = 1', ylim=(0, 105))
        axis.set_title(name, fontsize='medium')
        axis.margins(x=0.15)
    axes[0, 0].set_ylabel('accuracy on digit pixels (%)')
    axes[0, 0].annotate('chance', (0.98, CHANCE - 7), xycoords=('axes fraction', 'data'), fontsize='small', ha='right')
    dots = [Line2D([], [], color=colour, marker='o', linestyle='') for colour in COLOURS.values()]
    figure.legend(dots, COLOURS, loc='outside lower center', ncols=len(dots), frameon=False)
    write_figure(path, figure, dpi=110)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ValueError: a network is not known, a seed is negative, or there are no steps.
        FileNotFoundError: the folder of the figure is missing.
    """
    parser = argparse.ArgumentParser(prog='python -m benchmarks.long_range', description=__doc__.splitlines()[0])
    parser.add_argument('--networks', nargs='+', default=list(NETWORKS), metavar='NAME', help=', '.join(NETWORKS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=STEPS, help='of each training (default: %(default)s)')
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder for the records')
    parser.add_argument('--figure', type=Path, default=FIGURE, help='picture to write')
    options = parser.parse_args(arguments)
    for name in options.networks:
        choose('--networks', name, NETWORKS)
    if min(options.seeds) < 0:
        raise ValueError(f'--seeds must be 0 or more, got {min(options.seeds)}')
    positive_integer('--steps', options.steps)
    if not options.figure.parent.is_dir():
        raise FileNotFoundError(f'the folder of --figure {options.figure} does not exist')
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    read_records(options.results, options.steps)  # complains before anything trains
    logging.disable(logging.INFO)  # MMEngine tells how each parameter starts
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.networks:
            for context in NETWORKS[name]:
                path = path_of(options.results, name, context, f'seed{seed}')
                if not path.exists():
                    record = run(name, context, seed, options.steps)
                    write_json(path, record)
                    result = f'{record["accuracy"]:.1f} % in {record["seconds"]:.0f} s'
                    print(f'{name}, {context}, seed {seed}: {result}', flush=True)
    found, times = read_records(options.results, options.steps), {}
    for name in dict.fromkeys(name for name, _ in found):
        path = path_of(options.results, name, 'step-times')
        if not path.exists():
            write_json(path, time_steps(name))
        times[name] = json.loads(path.read_text())
    draw(found, times, options.figure)
    print(f'\n{table(found, times)}\n\nchance: {CHANCE:.0f} %; the patch is {DISTANCE_PX} px from the digits')
    print(f'figure: {options.figure}')


if __name__ == '__main__':
    run_tool(main)
