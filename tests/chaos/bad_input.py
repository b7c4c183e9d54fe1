"""Feed thousands of bad inputs to the readers of images, annotations and checkpoints, and count the outcomes.

PYTHONPATH=tests python -m chaos.bad_input --count 1000 --seed 0

A child process reads the files. A crash or hang of the child is counted, and a new child reads the next file.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from chaos.malicious import DATA, REFUSED, WASTE, checkpoints
from mmsb.checkpoints.load import load_checkpoint
from mmsb.datasets.check import check_data
from mmsb.datasets.check.samples import SampleCheck
from mmsb.datasets.loading import LoadImage, load_sample

from .mutations import IMAGE_KINDS, annotation_lines, coco_text, image, mask

FINE, NAMED, UNCLEAR, CRASHED, HUNG = 'fine', 'named', 'unclear', 'crashed', 'hung'
RAN = 'ran'
MEMORY_BYTES = 3 * 2**30  # on top of what the process uses at its start
SIZE_PX = (40, 30)  # width, height
_LOAD = dict(type='LoadImageFromFile')


def campaign(count: int = 1000, seed: int = 0, *, limit_s: float = 10) -> list[dict]:
    """Read malformed images, annotations and masks with the loading transform and the data check.

    Args:
        count: number of malformed images; annotation files and masks, a tenth as many of each kind, are added if their
            library is installed.
        seed: seed of the mutations.
        limit_s: time limit per file.

    Returns:
        a row for each kind and reader: `what`, `tried`, `survived` (fine or named), and the number of each outcome:
        `fine` (no error), `named` (one line that names the file), `unclear` (another failure), `crashed`, `hung`.
    """
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows: dict[str, Counter] = {}
        made = _images(count, random)
        kinds = [kind for kind, _ in made]
        _count(rows, 'LoadImage', isolated(lambda item: _load(root, *item), made, limit_s), kinds)
        _count(rows, 'check', isolated(lambda item: _check_image(root, *item), made, limit_s), kinds)
        for what, library, prepare, make, file in (
            ('COCO file', 'mmcv._ext', _coco, coco_text, 'train.json'),
            ('class list', 'mmpretrain', _listed, annotation_lines, 'train.txt'),
            ('mask', 'mmseg', _scenes, mask, 'masks/0.png'),
        ):
            if _is_there(library):
                cfg = prepare(root / what.split()[0])
                target = root / what.split()[0] / file
                contents = [make(random) for _ in range(max(count // 10, 1))]
                for reader, task in dict(check=_check, **(dict(training=_sample) if what == 'mask' else {})).items():
                    found = isolated(functools.partial(task, cfg, target), contents, limit_s)
                    _count(rows, reader, found, [what] * len(contents))
    return [
        dict(what=what, tried=sum(counts.values()), survived=counts[FINE] + counts[NAMED])
        | {outcome: counts[outcome] for outcome in (FINE, NAMED, UNCLEAR, CRASHED, HUNG)}
        for what, counts in rows.items()
    ]


def images(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Return the kind and the content of each image of a campaign."""
    return _images(count, np.random.default_rng(seed))


def malicious_campaign(*, limit_s: float = 20, read: Callable[[Path], object] = load_checkpoint) -> list[dict]:
    """Read every malicious checkpoint.

    Args:
        limit_s: time limit per file.
        read: the reader.

    Returns:
        a row for each: `what`, `right` (a set of outcomes), `outcome`: 'refused' (one line that names the file), 'data'
        (loaded, and nothing ran), 'ran', 'unclear' (another failure), 'crashed' or 'hung'; `seconds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder, 'canary')
        made = checkpoints(str(canary))
        canary.unlink(missing_ok=True)
        begin = time.perf_counter()
        rows = []
        outcomes = isolated(
            lambda item: _load_checkpoint(Path(folder), canary, read, *item[:2]), list(made.values()), limit_s
        )
        for (what, (_, _, right)), outcome in zip(made.items(), outcomes, strict=True):
            now = time.perf_counter()
            allowed = {REFUSED, DATA} if right == WASTE else {right}
            rows.append(dict(what=what, right=allowed, outcome=outcome, seconds=round(now - begin, 2)))
            begin = now
    return rows


def isolated(task: Callable, items: list, limit_s: float) -> Iterator[str]:
    """Run `task` on each item in another process; yield its result, 'crashed' or 'hung'."""
    context = multiprocessing.get_context('fork')
    done = 0
    while done < len(items):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(task, items[done:], theirs), daemon=True)
        process.start()
        theirs.close()
        while done < len(items):
            try:
                outcome = ours.recv() if ours.poll(limit_s) else HUNG
            except EOFError:
                outcome = CRASHED
            yield outcome
            done += 1
            if outcome in (HUNG, CRASHED):
                break
        process.kill()
        process.join()
        ours.close()


def _work(task: Callable, items: list, results) -> None:
    cv2.setNumThreads(0)
    if sys.platform == 'linux':  # macOS cannot limit the address space
        used = int(Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hide the output of decoders
    warnings.simplefilter('ignore')
    for item in items:
        results.send(task(item))


def _count(rows: dict[str, Counter], reader: str, outcomes: Iterator[str], kinds: list[str]) -> None:
    for kind, outcome in zip(kinds, outcomes, strict=True):
        rows.setdefault(f'{kind}, {reader}', Counter())[outcome] += 1


def _images(count: int, random: np.random.Generator) -> list[tuple[str, bytes]]:
    return [(kind, image(kind, random)) for _, kind in zip(range(count), itertools.cycle(IMAGE_KINDS), strict=False)]


def _is_there(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False


def _named(error: Exception, path: Path) -> str:
    return NAMED if isinstance(error, ValueError) and str(path) in str(error) and '\n' not in str(error) else UNCLEAR


def _load(root: Path, kind: str, content: bytes) -> str:
    path = root / f'image.{kind}'
    path.write_bytes(content)
    try:
        pixels = LoadImage()(dict(img_path=str(path)))['img']
    except Exception as error:  # any exception is counted
        return _named(error, path)
    return FINE if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 else UNCLEAR


def _check_image(root: Path, kind: str, content: bytes) -> str:
    path = root / f'image.{kind}'
    path.write_bytes(content)
    try:
        found = SampleCheck([_LOAD], labels=None)(dict(img_path=str(path)))
    except Exception:  # any exception is counted
        return UNCLEAR
    errors = [one for one in found if one.level == 'error']
    return NAMED if errors and all(one.file == str(path) for one in errors) else UNCLEAR if errors else FINE


def _check(cfg: dict, file: Path, content: bytes) -> str:
    file.write_bytes(content)
    MMLogger.get_current_instance().setLevel('ERROR')
    try:
        found = [one for report in check_data(Config(cfg)) for one in report.findings]
    except Exception:  # any exception is counted
        return UNCLEAR
    errors = [one for one in found if one.level == 'error']
    root = cfg['train_dataloader']['dataset']['data_root']
    named = all(one.file.startswith(root) or one.kind == 'empty split' for one in errors)
    return (NAMED if named else UNCLEAR) if errors else FINE


def _sample(cfg: dict, file: Path, content: bytes) -> str:
    """Load the sample of a mask as a training does."""
    file.write_bytes(content)
    init_default_scope(cfg['default_scope'])
    dataset = DATASETS.build(cfg['train_dataloader']['dataset'])
    try:
        mask = load_sample(dataset, 0)['gt_seg_map']
    except Exception as error:  # any exception is counted
        return _named(error, file)
    return FINE if mask.dtype == np.uint8 else UNCLEAR


def _load_checkpoint(folder: Path, canary: Path, read: Callable, name: str, content: bytes) -> str:
    shutil.rmtree(canary, ignore_errors=True)  # code in the previous file may have made it a folder
    canary.unlink(missing_ok=True)
    path = folder / name
    path.write_bytes(content)
    try:
        read(path)
        outcome = 'data'
    except Exception as error:  # any exception is counted
        outcome = REFUSED if _named(error, path) == NAMED else UNCLEAR
    return RAN if canary.exists() else outcome


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', SIZE_PX, (200, 120, 40)).save(path)


def _coco(root: Path) -> dict:
    for number in range(2):
        _picture(root / f'images/{number}.png')
    dataset = dict(type='CocoDataset', data_root=str(root), data_prefix=dict(img='images'), ann_file='train.json')
    dataset.update(metainfo=dict(classes=('cat', 'dog')), pipeline=[_LOAD])
    return dict(default_scope='mmdet', model=dict(), train_dataloader=dict(dataset=dataset))


def _listed(root: Path) -> dict:
    for number in range(2):
        _picture(root / f'images/{number}.png')
    dataset = dict(
        type='CustomDataset', data_root=str(root), data_prefix='images', ann_file='train.txt', pipeline=[_LOAD]
    )
    dataset.update(metainfo=dict(classes=['cat', 'dog']))
    model = dict(head=dict(num_classes=2))
    return dict(default_scope='mmpretrain', model=model, train_dataloader=dict(dataset=dataset))


def _scenes(root: Path) -> dict:
    _picture(root / 'images/0.jpg')
    (root / 'masks').mkdir()
    dataset = dict(type='ADE20KDataset', data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='masks'))
    dataset.update(pipeline=[_LOAD, dict(type='LoadAnnotations', reduce_zero_label=True)])
    model = dict(decode_head=dict(num_classes=150))
    return dict(default_scope='mmseg', model=model, train_dataloader=dict(dataset=dataset))


def main() -> None:
    parser = argparse.ArgumentParser(description='Read thousands of bad inputs, and count the outcomes.')
    parser.add_argument('--count', type=int, default=1000, help='malformed images (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f'--count must be at least 1, got {args.count}')
    for row in campaign(args.count, args.seed):
        print(json.dumps(row), flush=True)
    rows = malicious_campaign()
    wrong = [f'{row["outcome"]}: {row["what"]}' for row in rows if row['outcome'] not in row['right']]
    print(json.dumps(dict(what='malicious checkpoints', tried=len(rows), **Counter(row['outcome'] for row in rows))))
    print('\n'.join(wrong) or 'all outcomes are as expected')


if __name__ == '__main__':
    main()
