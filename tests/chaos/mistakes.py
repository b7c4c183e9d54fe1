"""Change one leaf of a shipped config at random, train with it, and see whether the mistake is named at once.

PYTHONPATH=tests python -m chaos.mistakes --count 1000 --seed 0

A change that is valid after all must train: two iterations, a validation and a checkpoint. Prints a line of JSON for
each change that had a wrong outcome, and a table by kind and library.
"""

import argparse
import contextlib
import copy
import functools
import hashlib
import importlib
import json
import pickle
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mmengine
import numpy as np
from mmengine.config import Config
from PIL import Image

from chaos.inject import at_iteration
from chaos.row import Row
from chaos.victim import ROOT, prepare, train

CLEAN, VALID = 'named', 'valid'
UNCLEAR, LATE, IGNORED, CRASHED = 'unclear', 'late', 'ignored', 'crashed'
CONFIGS = {
    'demo/sb-resnet11_b64-10e_digits': 'mmpretrain',
    'demo/sb-resnet20_b16-250i_digits-cue': 'mmseg',
    'demo/fpn_sb-resnet20_b8-200i_digits-scenes': 'mmseg',
    'demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes': 'mmdet',
    'cifar100/sb-resnet38_b64-300e_cifar100': 'mmpretrain',
    'coco/faster-rcnn_sb-r50_fpn_b4-12e_coco128-320': 'mmdet',
    'camvid/fpn_sb-r50_b8-200i_camvid-240x320': 'mmseg',
    'coco/mask-rcnn_sb-r50_fpn_1x_coco': 'mmdet',
    'ade20k/fpn_sb-r50_40k_ade20k-512x512': 'mmseg',
}
SMALL = {  # sizes for one core
    'coco/mask-rcnn_sb-r50_fpn_1x_coco': dict(scale=(200, 128)),
    'camvid/fpn_sb-r50_b8-200i_camvid-240x320': dict(scale=(160, 120), crop_size=(96, 128)),
    'ade20k/fpn_sb-r50_40k_ade20k-512x512': dict(scale=(256, 128), crop_size=(128, 128)),
}
QUICK = tuple(CONFIGS)[:3]
SECTIONS = (  # what a training reads
    'model', 'data_preprocessor', 'train_dataloader', 'val_dataloader', 'val_evaluator', 'train_cfg', 'val_cfg',
    'optim_wrapper', 'param_scheduler', 'default_hooks', 'custom_hooks', 'env_cfg', 'log_processor', 'visualizer',
    'log_level', 'load_from', 'resume', 'default_scope', 'randomness', 'auto_scale_lr', 'work_dir',
)  # fmt: skip
FREE_NAMES = ('default_hooks', 'custom_keys', 'metainfo')  # sections whose keys are the user's
LIMIT_S = 300


@dataclass
class Change:
    """One change of a config.

    Args:
        kind: which.
        path: keys to the changed leaf; of a changed key, the new one at the end.
        told: words of which the error must have one.
        text: what was changed into what.
        config: the changed config.
    """

    kind: str
    path: tuple
    told: tuple[str, ...]
    text: str
    config: dict


def letter_dropped(word: str, chance: random.Random) -> str:
    place = chance.randrange(len(word))
    return word[:place] + word[place + 1 :]


def of_key(node: dict, key: str, chance: random.Random) -> str:
    new = letter_dropped(key, chance)
    items = [(new if one == key else one, value) for one, value in node.items()]
    node.clear()
    node.update(items)
    return new


VALUES = {  # kind of change: the old value -> the new one, or None if there is nothing to change
    'type misspelt': lambda value, chance: None,  # in `change`
    'number as text': lambda value, _: str(value) if _number(value) else None,
    'text as number': lambda value, chance: chance.choice([0, 7, 2.5]) if isinstance(value, str) else None,
    'zero': lambda value, _: 0 if _number(value) and value else None,
    'negative': lambda value, _: -value if _number(value) and value > 0 else None,
    'None': lambda value, _: None,  # in `change`
    'wrong length': lambda value, chance: _other_length(value, chance),
}
KINDS = ('key', *VALUES)


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _other_length(value, chance: random.Random):
    if not isinstance(value, (list, tuple)) or not value or any(isinstance(one, dict) for one in value):
        return None
    return value[:-1] if chance.randrange(2) else type(value)([*value, value[-1]])


def leaves(node, path: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """Yield the path and the value of each leaf; lists of plain values are leaves."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, (list, tuple)) and any(isinstance(one, dict) for one in node):
        for i, value in enumerate(node):
            yield from leaves(value, (*path, i))
    elif path:
        yield path, node


def change(config: dict, kind: str, chance: random.Random) -> Change | None:
    """Change one leaf, or the key of one section or leaf; None if there is none for this kind."""
    config = copy.deepcopy(config)
    found = [(path, value) for path, value in leaves(config) if isinstance(path[-1], str)]
    if kind == 'type misspelt':
        found = [(path, value) for path, value in found if path[-1] == 'type']
    elif kind == 'None':
        found = [(path, value) for path, value in found if value is not None]
    elif kind != 'key':
        found = [
            (path, value) for path, value in found if path[-1] != 'type' and VALUES[kind](value, chance) is not None
        ]
    if not found:
        return None
    path, value = chance.choice(found)
    if kind == 'key':
        names = [i for i, key in enumerate(path) if isinstance(key, str) and len(key) > 2]
        path = path[: chance.choice(names) + 1]
        node = functools.reduce(lambda node, key: node[key], path[:-1], config)
        new = of_key(node, path[-1], chance)
        text = f'{".".join(map(str, path))} -> {new}'
        return Change(kind, (*path[:-1], new), (path[-1], new), text, config)
    new = (
        None
        if kind == 'None'
        else letter_dropped(value, chance)
        if kind == 'type misspelt'
        else VALUES[kind](value, chance)
    )
    functools.reduce(lambda node, key: node[key], path[:-1], config)[path[-1]] = new
    text = f'{".".join(map(str, path))}: {value!r} -> {new!r}'
    return Change(kind, path, (path[-1], *([new] if kind == 'type misspelt' else [])), text, config)


def read(name: str) -> dict:
    """Read a shipped config, with what a training on one core needs; the sections that a training reads."""
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = min(cfg.train_dataloader.batch_size, 4 if name.startswith('demo') else 2)
    cfg.model.backbone.pop('init_cfg', None)  # nothing is downloaded
    if name in SMALL:
        for split in ('train', 'val'):
            for step in cfg[f'{split}_dataloader'].dataset.pipeline:
                step.update({key: side for key, side in SMALL[name].items() if key in step})
        if 'size' in cfg.model.data_preprocessor:
            cfg.model.data_preprocessor.size = SMALL[name]['crop_size']
    return {key: plain(cfg[key]) for key in SECTIONS if cfg.get(key) is not None}


def stop_soon() -> None:
    """Validate after two iterations, save, and end; call it in the victim."""

    def stop(runner) -> None:
        if runner.val_loop is not None:
            runner.val_loop.run()
        runner.save_checkpoint(runner.work_dir, 'end.pth')
        raise SystemExit(0)

    at_iteration(2, stop)
    from mmpretrain.datasets import CIFAR100

    for split in ('train', 'test'):
        path = Path(f'data/cifar100/cifar-100-python/{split}')
        if path.exists():
            setattr(CIFAR100, f'{split}_list', [[split, hashlib.md5(path.read_bytes()).hexdigest()]])
    CIFAR100._check_integrity = lambda self: True


def outcome(folder: Path, one: Change) -> tuple[str, str]:
    """Train with a changed config; return the outcome, and what was said."""
    path, work_dir = folder / 'changed.py', folder / 'changed'
    shutil.rmtree(work_dir, ignore_errors=True)
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in one.config.items()))
    try:
        victim = train(folder, path, '--work-dir', work_dir, before=stop_soon)
    except TimeoutError:
        return CRASHED, 'hung'
    lines = victim.said().splitlines()
    victim.output.unlink()
    errors = [line for line in lines if line.startswith('error: ')]
    said = errors[0] if errors else '\n'.join(lines[-5:])
    if victim.code == 0:
        ignored = one.kind == 'key' and not any(name in one.path[:-1] for name in FREE_NAMES)
        return (IGNORED if ignored else VALID), said
    if victim.code != 1:
        return CRASHED, said
    if work_dir.exists():
        return (VALID if 'urlopen error' in said else LATE), said  # another data set, which the run would download
    named = len(errors) == 1 and any(re.search(rf'(?<!\w){re.escape(str(word))}(?!\w)', said) for word in one.told)
    return (CLEAN if named and 'Traceback' not in '\n'.join(lines) else UNCLEAR), said


def plain(node):
    """Turn a config into plain dicts and lists."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in dict.items(node)}
    return type(node)(map(plain, node)) if isinstance(node, (list, tuple)) else node


def changes(count: int, seed: int, names: tuple[str, ...]) -> Iterator[tuple[str, Change]]:
    """Yield the name of a config and a change of it."""
    chance = random.Random(seed)
    configs = {name: read(name) for name in names}
    number = 0
    while number < count:
        name = names[number % len(names)]
        made = change(configs[name], chance.choice(KINDS), chance)
        if made:
            number += 1
            yield name, made


def write_data(folder: Path) -> None:
    """Write a few images with annotations for each dataset of CONFIGS beside the demo's."""
    prepare(folder)
    for data in ('coco', 'coco128'):
        _write_coco(folder / f'data/{data}')
    _write_scenes(folder / 'data/ade/ADEChallengeData2016', ('training', 'validation'), 150)
    _write_scenes(folder / 'data/camvid', ('train', 'val'), 11)
    root = folder / 'data/cifar100/cifar-100-python'
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3072), np.uint8)
    for split in ('train', 'test'):
        (root / split).write_bytes(pickle.dumps(dict(data=pixels, fine_labels=[i % 100 for i in range(200)])))
    from mmpretrain.datasets.categories import CIFAR100_CATEGORIES

    (root / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=list(CIFAR100_CATEGORIES))))


def _picture(path: Path, seed: int, mode: str = 'RGB', classes: int = 256) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (60, 90, 3) if mode == 'RGB' else (60, 90)
    blocks = np.random.default_rng(seed).integers(0, classes, (6, 9, *size[2:]), np.uint8)
    Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(path)


def _write_scenes(root: Path, splits: tuple[str, str], classes: int) -> None:
    for split in splits:
        for i in range(6):
            _picture(root / f'images/{split}/{i}.jpg', i)
            _picture(root / f'annotations/{split}/{i}.png', i, 'L', classes)


def _write_coco(root: Path) -> None:
    from mmdet.datasets import CocoDataset

    for split in ('train2017', 'val2017'):
        for i in range(6):
            _picture(root / f'{split}/{i}.jpg', i)
        boxes = [[10, 5, 45, 40], [30, 20, 50, 35]]
        content = dict(
            images=[dict(id=i, file_name=f'{i}.jpg', width=90, height=60) for i in range(6)],
            annotations=[
                dict(id=2 * i + k + 1, image_id=i, bbox=[x, y, w, h], area=w * h, category_id=i * 13 + k + 1, iscrowd=0,
                     segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
                for i in range(6) for k, (x, y, w, h) in enumerate(boxes)
            ],
            categories=[dict(id=i + 1, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'])],
        )  # fmt: skip
        path = root / f'annotations/instances_{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def import_once(libraries: set[str]) -> None:
    """Import libraries, once for all children."""
    for library in sorted(libraries):
        for part in ('datasets', 'engine', 'evaluation', 'models', 'visualization'):
            with contextlib.suppress(ImportError):
                importlib.import_module(f'{library}.{part}')
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)


def campaign(folder: Path, count: int, seed: int, names: tuple[str, ...] = tuple(CONFIGS)) -> Iterator[dict]:
    """Try changes; yield for each its config, library, kind, text, outcome, and what was said."""
    import_once({CONFIGS[name] for name in names})
    for name, one in changes(count, seed, names):
        found, said = outcome(folder, one)
        yield dict(config=name, library=CONFIGS[name], kind=one.kind, change=one.text, outcome=found, said=said)


def mistakes(folder: Path, *, quick: bool) -> Row:
    """One leaf of a shipped config is changed."""
    row = Row(
        'a leaf of a config changed',
        'one line that names the key, before anything is written, or a sound run',
        least=0.95,
    )
    if not quick:
        write_data(folder)
    for one in campaign(folder, 15 if quick else 1000, 2 if quick else 0, QUICK if quick else tuple(CONFIGS)):
        row.add(one['outcome'] in (CLEAN, VALID), one['outcome'], stock=False)
    return row


def table(rows: list[dict]) -> str:
    """Make the Markdown table of the outcomes, by kind and library."""
    lines = ['| change | library | tried | valid after all | mistakes | named at once |', '|---|---|---|---|---|---|']
    groups = [(kind, library) for kind in KINDS for library in ('mmpretrain', 'mmdet', 'mmseg')]
    for kind, library in [*groups, ('all', 'all')]:
        counts = Counter(
            row['outcome'] for row in rows if kind in (row['kind'], 'all') and library in (row['library'], 'all')
        )
        tried, wrong = counts.total(), counts.total() - counts[VALID]
        share = f'{counts[CLEAN]} ({100 * counts[CLEAN] / wrong:.1f} %)' if wrong else '-'
        lines.append(f'| {kind} | {library} | {tried} | {counts[VALID]} | {wrong} | {share} |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description='Train with changed configs, and count the outcomes.')
    parser.add_argument('--count', type=int, default=1000, help='changes (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--configs', nargs='+', choices=CONFIGS, default=tuple(CONFIGS))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix='mistakes-') as temporary:
        write_data(Path(temporary))
        try:
            for row in campaign(Path(temporary), args.count, args.seed, tuple(args.configs)):
                rows.append(row)
                if row['outcome'] not in (CLEAN, VALID):
                    print(json.dumps(row), flush=True)
        except KeyboardInterrupt:
            print(f'interrupted after {len(rows)} of {args.count}')
    print(table(rows))


if __name__ == '__main__':
    main()
