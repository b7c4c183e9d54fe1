"""The embedded demo data: 1,797 real handwritten digits in standard formats, without a download.

* `digits`: single digits, 32 x 32 px, in class folders (classification).
* `digits-cue`: scenes of 64 x 64 px as images and masks (segmentation). A coloured patch in one corner determines the
  class of the digits in the opposite corner, outside the receptive field of a small ResNet.
* `digits-mirror`: scenes of 64 x 64 px as images and masks (segmentation). Each digit on the right has the class of the
  coloured patch in the mirrored place on the left, and all scenes have the same colours: what is in the image tells
  nothing, only where it is.
* `digits-scenes`: scenes of 128 x 128 px with digits of several sizes, lines, and distractors made from quarters of
  digits, annotated in COCO format (detection, instance masks) and with ADE20K-style masks (segmentation).

Source of the digits: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, as in scikit-learn.

    python -m mmsb.datasets.digits [FOLDER]     # data/demo by default
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

CLASSES = tuple('0123456789')
IGNORE = 255
CUE_COLOURS = {'red': (220, 50, 40), 'green': (50, 170, 60), 'blue': (50, 90, 220), 'yellow': (225, 200, 40)}
SCENE_PX = 64
PATCH_PX = 10
DIGIT_PX = 16
DIGIT_REGION_PX = 32  # side of the square, in the corner opposite the patch, that holds the digits
MIRROR_CELLS = 8  # along a side of a mirror scene; each holds a patch, a digit, or nothing
MIRROR_COLUMNS = 2  # of cells with patches, on the left, and of cells with digits, on the right
COUNTS = {'train': 2000, 'val': 400}
MIRROR_COUNTS = {'train': 4000, 'val': 400}

WIDE_PX = 128  # side of a detection scene
WIDE_COUNTS = {'train': 800, 'val': 200}
WIDE_DIGIT_PX = (24, 40)  # smallest and largest side of a digit
GAP_PX = 2  # between objects
UNLABELLED, DIGIT, DISTRACTOR, BACKGROUND = range(4)  # mask labels; 0 is ignored, as in ADE20K


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Load the digits of a split: images (n, 8, 8) of 0 to 255, and labels (n,). One in five is for 'val'."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[::5] if split == 'val' else np.delete(order, np.s_[::5])
    return (digits.images[chosen] * 255 / 16).astype(np.uint8), digits.target[chosen]


def enlarge(digit: np.ndarray, size_px: int) -> np.ndarray:
    """Enlarge an 8 x 8 digit to a square of `size_px`."""
    return np.asarray(Image.fromarray(digit).resize((size_px, size_px), Image.Resampling.BILINEAR))


def cue_scene(rng: np.random.Generator, digits: np.ndarray, side_px: int = SCENE_PX) -> tuple[np.ndarray, np.ndarray]:
    """Compose one scene with the long-range cue.

    Args:
        rng: random generator.
        digits: digits to draw from, (n, 8, 8).
        side_px: side of the scene; patch and digits keep their size and their corners, so that it sets the distance.

    Returns:
        image (side_px, side_px, 3) and mask (side_px, side_px): digit pixels hold the index of the patch's colour, all
        others 255.
    """
    cue = int(rng.integers(len(CUE_COLOURS)))
    image = rng.integers(40, 80, (side_px, side_px, 3))
    mask = np.full((side_px, side_px), IGNORE, np.uint8)
    patch_top, patch_left = rng.integers(2, size=2) * (side_px - PATCH_PX)
    patch = np.s_[patch_top : patch_top + PATCH_PX, patch_left : patch_left + PATCH_PX]
    image[patch] = list(CUE_COLOURS.values())[cue] + rng.integers(-20, 20, (PATCH_PX, PATCH_PX, 3))
    first_top = side_px - DIGIT_REGION_PX if patch_top == 0 else 0
    first_left = side_px - DIGIT_REGION_PX if patch_left == 0 else 0
    for cell in rng.choice(4, size=2, replace=False):
        top, left = first_top + DIGIT_PX * (cell // 2), first_left + DIGIT_PX * (cell % 2)
        ink = enlarge(digits[rng.integers(len(digits))], DIGIT_PX)
        window = np.s_[top : top + DIGIT_PX, left : left + DIGIT_PX]
        image[window] = np.maximum(image[window], ink[..., None])
        mask[window][ink > 127] = cue
    return np.clip(image, 0, 255).astype(np.uint8), mask


def mirror_scene(
    rng: np.random.Generator, digits: np.ndarray, side_px: int = SCENE_PX
) -> tuple[np.ndarray, np.ndarray]:
    """Compose one scene of the mirror: patches in half of the cells on the left, a digit in each mirrored cell.

    Each colour occurs equally often in every scene, so that only the places say which digit has which class.

    Args:
        rng: random generator.
        digits: digits to draw from, (n, 8, 8).
        side_px: side of the scene, 8 cells.

    Returns:
        image (side_px, side_px, 3) and mask (side_px, side_px): digit pixels hold the index of the colour of the
        mirrored patch, all others 255.
    """
    image = rng.integers(40, 80, (side_px, side_px, 3))
    mask = np.full((side_px, side_px), IGNORE, np.uint8)
    cell_px, places = side_px // MIRROR_CELLS, MIRROR_CELLS * MIRROR_COLUMNS
    chosen = rng.choice(places, size=places // 2, replace=False)
    for place, colour in zip(chosen, rng.permutation(len(chosen)) % len(CUE_COLOURS), strict=True):
        top, left = cell_px * (place // MIRROR_COLUMNS), cell_px * (place % MIRROR_COLUMNS)
        patch = np.s_[top : top + cell_px, left : left + cell_px]
        image[patch] = list(CUE_COLOURS.values())[colour] + rng.integers(-20, 20, (cell_px, cell_px, 3))
        window = np.s_[top : top + cell_px, side_px - left - cell_px : side_px - left]
        ink = enlarge(digits[rng.integers(len(digits))], cell_px)
        image[window] = np.maximum(image[window], ink[..., None])
        mask[window][ink > 127] = colour
    return np.clip(image, 0, 255).astype(np.uint8), mask


def wide_scene(
    rng: np.random.Generator, digits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], list[int]]:
    """Compose one scene for detection and segmentation: up to eight digits, lines, up to three distractors.

    Args:
        rng: random generator.
        digits: digits to draw from, (n, 8, 8).
        labels: labels of the digits, (n,).

    Returns:
        image (128, 128, 3); mask (128, 128): 1 for the ink of digits, 2 for the ink of distractors, 3 for the
        background, 0 for faint edges; a mask (128, 128) for the ink of each digit; and the labels of the digits.
    """
    canvas = Image.fromarray(rng.integers(20, 70, (WIDE_PX, WIDE_PX, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(4, 9)):
        ends, colour = rng.integers(0, WIDE_PX, 4), rng.integers(60, 200, 3)
        draw.line([int(v) for v in ends], fill=tuple(int(v) for v in colour))
    image = np.array(canvas)
    mask = np.full((WIDE_PX, WIDE_PX), BACKGROUND, np.uint8)
    taken = np.zeros((WIDE_PX, WIDE_PX), bool)
    inks, found = [], []
    distractors, count = rng.integers(1, 4), rng.integers(4, 9)
    for thing in range(count + distractors):
        number, size = rng.integers(len(digits)), int(rng.integers(WIDE_DIGIT_PX[0], WIDE_DIGIT_PX[1] + 1))
        top, left = rng.integers(GAP_PX, WIDE_PX - GAP_PX - size, 2)
        room = np.s_[top - GAP_PX : top + size + GAP_PX, left - GAP_PX : left + size + GAP_PX]
        if thing and taken[room].any():
            continue
        taken[room] = True
        window = np.s_[top : top + size, left : left + size]
        is_digit = thing < count
        ink = enlarge(digits[number] if is_digit else _shuffle_quarters(rng, digits[number]), size)
        tint = rng.uniform(0.6, 1, 3)
        image[window] = np.maximum(image[window], (ink[..., None] * tint).astype(np.uint8))
        mask[window][ink > 40] = UNLABELLED
        mask[window][ink > 127] = DIGIT if is_digit else DISTRACTOR
        if is_digit:
            inks.append(np.zeros((WIDE_PX, WIDE_PX), bool))
            inks[-1][window] = ink > 127
            found.append(int(labels[number]))
    return image, mask, inks, found


def _shuffle_quarters(rng: np.random.Generator, digit: np.ndarray) -> np.ndarray:
    """Swap the quarters of a digit: the ink looks like a digit's, but is not one."""
    left, right = (digit[::-1, :4], digit[:, 4:]) if rng.integers(2) else (digit[:, :4], digit[::-1, 4:])
    return np.roll(np.hstack([right, left]), 4, axis=0)


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Encode a mask in COCO's run-length format: lengths of runs of 0, 1, 0, ... in column-major order."""
    flat = mask.flatten(order='F').astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *edges, len(flat)]).tolist()


def write_digits(folder: Path) -> None:
    """Write single digits as `folder/{train,val}/<digit>/<number>.png`."""
    for split in COUNTS:
        for number, (digit, label) in enumerate(zip(*load(split), strict=True)):
            target = folder / split / str(label)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(enlarge(digit, 32)).convert('RGB').save(target / f'{number:04d}.png')


def write_cue(folder: Path) -> None:
    """Write the scenes with the long-range cue as `folder/{images,masks}/{train,val}/<number>.png`."""
    _write_masked(folder, cue_scene, COUNTS)


def write_mirror(folder: Path) -> None:
    """Write the scenes of the mirror as `folder/{images,masks}/{train,val}/<number>.png`."""
    _write_masked(folder, mirror_scene, MIRROR_COUNTS)


def _write_masked(folder: Path, scene: Callable, counts: dict[str, int]) -> None:
    for seed, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng(seed)
        digits, _ = load(split)
        for kind in ('images', 'masks'):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, mask = scene(rng, digits)
            Image.fromarray(image).save(folder / 'images' / split / f'{number:04d}.png')
            Image.fromarray(mask).save(folder / 'masks' / split / f'{number:04d}.png')


def write_scenes(folder: Path) -> None:
    """Write scenes as `folder/{images,masks}/{train,val}/<number>.png`, `folder/annotations/instances_<split>.json`."""
    (folder / 'annotations').mkdir()
    for seed, (split, count) in enumerate(WIDE_COUNTS.items()):
        rng = np.random.default_rng(100 + seed)
        digits, labels = load(split)
        coco = dict(
            info=dict(description=f'Scenes of handwritten digits, {split}'),
            categories=[dict(id=1 + i, name=name) for i, name in enumerate(CLASSES)],
            images=[],
            annotations=[],
        )
        for kind in ('images', 'masks'):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, mask, inks, found = wide_scene(rng, digits, labels)
            name = f'{number:04d}.png'
            Image.fromarray(image).save(folder / 'images' / split / name)
            Image.fromarray(mask).save(folder / 'masks' / split / name)
            coco['images'].append(dict(id=1 + number, file_name=name, width=WIDE_PX, height=WIDE_PX))
            for ink, label in zip(inks, found, strict=True):
                rows, columns = np.nonzero(ink.any(1))[0], np.nonzero(ink.any(0))[0]
                left, top = int(columns[0]), int(rows[0])
                coco['annotations'].append(
                    dict(
                        id=1 + len(coco['annotations']),
                        image_id=1 + number,
                        category_id=1 + label,
                        bbox=[left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                        area=int(ink.sum()),
                        iscrowd=0,
                        segmentation=dict(size=[WIDE_PX, WIDE_PX], counts=_run_lengths(ink)),
                    )
                )
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))


WRITERS = {
    'digits': write_digits,
    'digits-cue': write_cue,
    'digits-mirror': write_mirror,
    'digits-scenes': write_scenes,
}


def write(folder: str | Path) -> list[Path]:
    """Write the missing sets of the demo data, each of them atomically.

    Returns:
        the folders of all sets.
    """
    folders = []
    for name, writer in WRITERS.items():
        target = Path(folder) / name
        folders.append(target)
        if target.is_dir() and any(target.iterdir()):
            continue
        unfinished = target.with_name(f'.{name}.unfinished')
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        writer(unfinished)
        unfinished.replace(target)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description='Write the demo data: handwritten digits in standard formats.')
    parser.add_argument('folder', nargs='?', default='data/demo', help='target folder (default: %(default)s)')
    try:
        for target in write(parser.parse_args().folder):
            print(f'{target}: {sum(1 for _ in target.rglob("*.png"))} images')
    except OSError as error:
        sys.exit(f'error: cannot write the demo data: {error}')


if __name__ == '__main__':
    main()
