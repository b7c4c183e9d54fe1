"""The mirror as a yardstick: which context tells where something is, at what price, and what breaks it.

    python -m benchmarks.mirror                                # all trainings, on one core
    python -m benchmarks.mirror --contexts SB GC --seeds 0
    python -m benchmarks.mirror --contexts                     # none: only the tables of what has a record

Every digit has the class of the coloured patch in the mirrored place, beyond the reach of the convolutions, and every
scene has the same colours (`mmsb.datasets.digits.mirror_scene`). Each context is trained at each of a few learning
rates, then with the other seeds at its best one; what stays below 90 % gets ten times the steps, and what arrives is
trained once more on augmented scenes. Each trained network is also tested on scenes that are scaled, stretched,
cropped, shifted and flipped. A record is written when a training ends; what has a record is not trained again, so that
several of these commands can share the work.
"""

import argparse
import itertools
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import mmsb
from benchmarks.long_range import MEAN, STD, learning_rate, make_optimizer, path_of, train_step
from benchmarks.mirror_networks import ALL, CONTEXTS, NETWORKS, QUESTIONS, build
from mmsb.analysis.machine import describe
from mmsb.analysis.report import markdown, write_json
from mmsb.datasets import digits
from mmsb.engine.launcher import run_tool
from mmsb.options import choose

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks/results/mirror'
BATCH, RATES, STEPS, LONG = 16, (2e-3, 6e-3, 2e-2), 250, 2500
SOLVED, CHANCE = 90.0, 100 / len(digits.CUE_COLOURS)
TEST_SCENES, TEST_SEED, TEST_EVERY = 160, 10**6, 25
SIDE, CELL = digits.SCENE_PX, digits.SCENE_PX // digits.MIRROR_CELLS
Scene = tuple[np.ndarray, np.ndarray]  # an image (H, W, 3), and its mask (H, W)


def resized(scene: Scene, height: int, width: int) -> Scene:
    """Scale a scene to another size in pixels."""
    image, mask = (Image.fromarray(one) for one in scene)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image), np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))


def moved(scene: Scene, down: int, right: int) -> Scene:
    """Move all that is in a scene; what leaves it is lost, and the noise of the left column fills the gap."""
    image, mask = (np.roll(one, (down, right), axis=(0, 1)) for one in scene)
    noise = np.random.default_rng((down * SIDE + right) % SIDE**2).integers(40, 80, image.shape).astype(np.uint8)
    gap = np.zeros(mask.shape, bool)
    gap[: max(down, 0)] = gap[len(mask) + min(down, 0) :] = True
    gap[:, : max(right, 0)] = gap[:, mask.shape[1] + min(right, 0) :] = True
    return np.where(gap[..., None], noise, image), np.where(gap, digits.IGNORE, mask)


def widened(scene: Scene) -> Scene:
    """Put more background between the patches and the digits: 64 x 96 px."""
    image, mask = scene
    noise = np.random.default_rng(0).integers(40, 80, (SIDE, SIDE // 2, 3)).astype(np.uint8)
    nothing = np.full((SIDE, SIDE // 2), digits.IGNORE, np.uint8)
    half = SIDE // 2
    return (
        np.concatenate([image[:, :half], noise, image[:, half:]], axis=1),
        np.concatenate([mask[:, :half], nothing, mask[:, half:]], axis=1),
    )


def flipped(scene: Scene, axis: int) -> Scene:
    image, mask = scene
    return np.flip(image, axis).copy(), np.flip(mask, axis).copy()


CHANGES: Mapping[str, Callable[[Scene], Scene]] = {
    'as trained': lambda scene: scene,
    'scaled to 96 x 96': lambda scene: resized(scene, 96, 96),
    'stretched to 64 x 96': lambda scene: resized(scene, 64, 96),
    'widened to 64 x 96': widened,
    'cropped to 48 x 64': lambda scene: (scene[0][8:56], scene[1][8:56]),
    'moved down by 1/4 cell': lambda scene: moved(scene, CELL // 4, 0),
    'moved down by 1/2 cell': lambda scene: moved(scene, CELL // 2, 0),
    'moved down by 1 cell': lambda scene: moved(scene, CELL, 0),
    'moved right by 1/4 cell': lambda scene: moved(scene, 0, CELL // 4),
    'moved right by 1/2 cell': lambda scene: moved(scene, 0, CELL // 2),
    'moved right by 1 cell': lambda scene: moved(scene, 0, CELL),
    'upside down': lambda scene: flipped(scene, 0),
    'left to right': lambda scene: flipped(scene, 1),
}


def augmented(scene: Scene, rng: np.random.Generator) -> Scene:
    """Change a scene by chance, at its own size: move it by up to a cell, crop and scale it, turn it over."""
    down, right = (int(value) for value in rng.integers(-CELL, CELL + 1, 2))
    image, mask = moved(scene, down, right)
    top, left, side = *(int(v) for v in rng.integers(0, CELL + 1, 2)), SIDE - int(rng.integers(0, CELL + 1))
    image, mask = resized(
        (image[top : top + side, left : left + side], mask[top : top + side, left : left + side]), SIDE, SIDE
    )
    return flipped((image, mask), int(rng.integers(2))) if rng.integers(2) else (image, mask)


def batch(rng: np.random.Generator, drawn: np.ndarray, change: Callable[[Scene], Scene]) -> tuple[Tensor, Tensor]:
    """Draw scenes: normalised RGB images, (B, 3, H, W), and masks, (B, H, W)."""
    scenes = [change(digits.mirror_scene(rng, drawn)) for _ in range(BATCH)]
    images = torch.from_numpy(np.stack([image for image, _ in scenes])).permute(0, 3, 1, 2)
    return (images.float() - MEAN) / STD, torch.from_numpy(np.stack([mask for _, mask in scenes])).long()


@torch.no_grad()
def accuracy(segmenter: nn.Module, change: Callable[[Scene], Scene] = CHANGES['as trained']) -> float:
    """Return the share of digit pixels that are right, in %, on digits that training does not show."""
    rng, drawn = np.random.default_rng(TEST_SEED), digits.load('val')[0]
    was_training = segmenter.training
    segmenter.eval()
    right = total = 0
    for _ in range(TEST_SCENES // BATCH):
        images, masks = batch(rng, drawn, change)
        on_digit = masks != digits.IGNORE
        right += int((segmenter(images).argmax(1) == masks)[on_digit].sum())
        total += int(on_digit.sum())
    segmenter.train(was_training)
    return 100 * right / total


def train(segmenter: nn.Module, seed: int, steps: int, rate: float, augment: bool) -> list[tuple[int, float, float]]:
    """Train on new scenes in each step; returns step, processor time (s) of the steps so far, and accuracy (%)."""
    rng, drawn = np.random.default_rng(seed), digits.load('train')[0]
    change = (lambda scene: augmented(scene, rng)) if augment else CHANGES['as trained']
    optimizer = make_optimizer(segmenter, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    curve, seconds = [], 0.0
    for step in range(1, steps + 1):
        images, masks = batch(rng, drawn, change)
        start = time.process_time()
        train_step(segmenter, optimizer, images, masks)
        schedule.step()
        seconds += time.process_time() - start
        if step % (TEST_EVERY * steps // STEPS) == 0:
            curve.append((step, round(seconds, 2), round(accuracy(segmenter), 2)))
    return curve


def under(segmenter: nn.Module, change: Callable[[Scene], Scene]) -> float | None:
    """Return the accuracy on changed scenes; None if the network refuses their size, as BAT does."""
    try:
        return round(accuracy(segmenter, change), 2)
    except ValueError:
        return None


def run(context: str, rate: float, seed: int, steps: int, augment: bool = False) -> dict:
    """Train a network, and make its record."""
    torch.manual_seed(seed)
    segmenter = build(context)
    curve = train(segmenter, seed, steps, rate, augment)
    reached = next(((step, seconds) for step, seconds, value in curve if value >= SOLVED), (None, None))
    return dict(
        context=context,
        rate=rate,
        seed=seed,
        steps=steps,
        augmented=augment,
        params=sum(parameter.numel() for parameter in segmenter.parameters()),
        accuracy=curve[-1][2],
        steps_to_90=reached[0],
        cpu_s_to_90=reached[1],
        cpu_s=curve[-1][1],
        curve=curve,
        changes={name: under(segmenter, change) for name, change in CHANGES.items()},
        machine=describe(torch.device('cpu'), seed) | dict(mmsb=mmsb.__version__),
    )


class Records:
    """Trains what has no record yet, and reads the rest."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, context: str, rate: float, seed: int, steps: int, augment: bool = False) -> dict:
        ending = ['augmented'] if augment else []
        path = path_of(self.folder, context.replace(',', ''), f'{steps}-steps', f'rate{rate:g}', f'seed{seed}', *ending)
        if not path.exists():
            record = run(context, rate, seed, steps, augment)
            write_json(path, record)
            print(f'{path.stem}: {record["accuracy"]:.1f} % in {record["cpu_s"]:.0f} s', flush=True)
        return json.loads(path.read_text())

    def with_seeds(self, context: str, seeds: Sequence[int], steps: int, augment: bool = False) -> list[dict]:
        """Return the records of all seeds, at the learning rate that is best with the first after the usual steps.

        What ten times the steps do not take far from chance is not trained with other seeds.
        """
        rate = best_rate([self.get(context, rate, seeds[0], STEPS) for rate in RATES])
        first = self.get(context, rate, seeds[0], steps, augment)
        others = seeds[1:] if steps == STEPS or first['accuracy'] > 2 * CHANCE else ()
        return [first, *(self.get(context, rate, seed, steps, augment) for seed in others)]

    def all(self) -> dict[tuple[str, int, bool], list[dict]]:
        """Read all records at the best learning rate of each context, number of steps and kind of scenes."""
        found: dict[tuple[str, int, bool], list[dict]] = {}
        for path in sorted(self.folder.glob('*.json')):
            record = json.loads(path.read_text())
            found.setdefault((record['context'], record['steps'], record['augmented']), []).append(record)
        for key, records in found.items():
            rate = best_rate([record for record in records if record['seed'] == records[0]['seed']])
            found[key] = [record for record in records if record['rate'] == rate]
        return found


def best_rate(records: Sequence[dict]) -> float:
    """Return the learning rate with the highest accuracy; of equals, the lowest."""
    return max(records, key=lambda record: (record['accuracy'], -record['rate']))['rate']


def solved(records: Sequence[dict]) -> bool:
    return statistics.mean(record['accuracy'] for record in records) >= SOLVED


def table(found: Mapping[tuple[str, int, bool], list[dict]], contexts: Sequence[str]) -> str:
    """Make the table of accuracy and cost, a row for each context and number of steps."""
    lines = []
    for context, steps in itertools.product(contexts, (STEPS, LONG)):
        if not (records := found.get((context, steps, False))):
            continue
        accuracies = [record['accuracy'] for record in records]
        reached = [record for record in records if record['steps_to_90']]
        lines.append([
            context, f'{records[0]["params"]:,}', f'{steps:,}', f'{records[0]["rate"]:g}',
            f'{statistics.mean(accuracies):.1f}', ', '.join(f'{value:.1f}' for value in accuracies),
            f'{statistics.median(one["steps_to_90"] for one in reached):.0f}' if reached else 'never',
            f'{statistics.median(one["cpu_s_to_90"] for one in reached):.0f} s' if reached else '',
            f'{1000 * statistics.median(one["cpu_s"] / one["steps"] for one in records):.0f} ms',
        ])  # fmt: skip
    header = ['context', 'parameters', 'steps', 'learning rate', 'accuracy, %', 'of the seeds', 'steps to 90 %',
              'processor time to 90 %', 'a step']  # fmt: skip
    return markdown(header, lines)


def table_of_changes(found: Mapping[tuple[str, int, bool], list[dict]]) -> str:
    """Make the table of what changed scenes do to the networks that solve the task."""
    columns = {
        f'{context}{", augmented" if augment else ""}': records
        for (context, _, augment), records in found.items()
        if context in CONTEXTS and (solved(records) or augment)
    }
    lines = [
        [name, *(_mean([one['changes'][name] for one in records]) for records in columns.values())] for name in CHANGES
    ]
    return markdown(['test scenes', *columns], lines)


def _mean(values: Sequence[float | None]) -> str:
    return '-' if None in values else f'{statistics.mean(values):.1f}'


def train_all(records: Records, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Train each network for the usual number of steps, then each context that has not arrived for ten times as many.

    Last, the contexts that arrived are trained as long on augmented scenes.
    """
    at_once = {name for name in names if solved(records.with_seeds(name, seeds, STEPS))}
    contexts = [name for name in names if name in CONTEXTS]
    arrived = [name for name in contexts if name in at_once or solved(records.with_seeds(name, seeds, LONG))]
    for name in arrived:
        records.with_seeds(name, seeds, LONG, augment=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.mirror', description=__doc__.splitlines()[0])
    parser.add_argument('--contexts', nargs='*', default=[*ALL], metavar='NAME')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder for the records')
    options = parser.parse_args()
    for name in options.contexts:
        choose('--contexts', name, ALL)
    if min(options.seeds) < 0:
        raise ValueError(f'--seeds must be 0 or more, got {min(options.seeds)}')
    options.results.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.INFO)  # MMEngine tells how each parameter starts
    torch.set_num_threads(1)
    records = Records(options.results)
    train_all(records, options.contexts, options.seeds)
    found = records.all()
    for names in (CONTEXTS, QUESTIONS, NETWORKS):
        print(f'\n{table(found, list(names))}')
    print(f'\n{table_of_changes(found)}\n\nchance: {CHANCE:.0f} %')


if __name__ == '__main__':
    run_tool(main)
