"""The embedded demo data: 1,797 real handwritten digits, composed into standard formats. No download.

* `digits`: single digits, 32 x 32 px, in class folders (classification).
* `digits-cue`: scenes of 64 x 64 px as images and masks (segmentation). A coloured patch in one corner decides the
  class of the digits in the opposite corner, farther away than a small ResNet sees.

Source of the digits: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, as in scikit-learn.

    python -m mmsb.datasets.digits [FOLDER]     # data/demo by default
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

IGNORE = 255
CUE_COLOURS = {'red': (220, 50, 40), 'green': (50, 170, 60), 'blue': (50, 90, 220), 'yellow': (225, 200, 40)}
SCENE_PX = 64
PATCH_PX = 10
DIGIT_PX = 16
DIGIT_REGION_PX = 32  # side of the square, in the corner opposite the patch, that holds the digits
COUNTS = {'train': 2000, 'val': 400}


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Load the digits of a split: images (n, 8, 8) of 0 to 255, and their labels (n,). Every fifth is for 'val'."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[::5] if split == 'val' else np.delete(order, np.s_[::5])
    return (digits.images[chosen] * 255 / 16).astype(np.uint8), digits.target[chosen]


def enlarge(digit: np.ndarray, size_px: int) -> np.ndarray:
    """Enlarge an 8 x 8 digit to a square of `size_px`."""
    return np.asarray(Image.fromarray(digit).resize((size_px, size_px), Image.Resampling.BILINEAR))


def cue_scene(rng: np.random.Generator, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compose one scene of the long-range cue.

    Args:
        rng: source of randomness.
        digits: to draw from, (n, 8, 8).

    Returns:
        image (64, 64, 3) and mask (64, 64): digit pixels have the index of the patch's colour, all others 255.
    """
    cue = int(rng.integers(len(CUE_COLOURS)))
    image = rng.integers(40, 80, (SCENE_PX, SCENE_PX, 3))
    mask = np.full((SCENE_PX, SCENE_PX), IGNORE, np.uint8)
    patch_top, patch_left = rng.integers(2, size=2) * (SCENE_PX - PATCH_PX)
    patch = np.s_[patch_top : patch_top + PATCH_PX, patch_left : patch_left + PATCH_PX]
    image[patch] = list(CUE_COLOURS.values())[cue] + rng.integers(-20, 20, (PATCH_PX, PATCH_PX, 3))
    first_top = SCENE_PX - DIGIT_REGION_PX if patch_top == 0 else 0
    first_left = SCENE_PX - DIGIT_REGION_PX if patch_left == 0 else 0
    for cell in rng.choice(4, size=2, replace=False):
        top, left = first_top + DIGIT_PX * (cell // 2), first_left + DIGIT_PX * (cell % 2)
        ink = enlarge(digits[rng.integers(len(digits))], DIGIT_PX)
        window = np.s_[top : top + DIGIT_PX, left : left + DIGIT_PX]
        image[window] = np.maximum(image[window], ink[..., None])
        mask[window][ink > 127] = cue
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_digits(folder: Path) -> None:
    """Write single digits as `folder/{train,val}/<digit>/<number>.png`."""
    for split in COUNTS:
        for number, (digit, label) in enumerate(zip(*load(split), strict=True)):
            target = folder / split / str(label)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(enlarge(digit, 32)).convert('RGB').save(target / f'{number:04d}.png')


def write_cue(folder: Path) -> None:
    """Write the scenes of the long-range cue as `folder/{images,masks}/{train,val}/<number>.png`."""
    for seed, (split, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(seed)
        digits, _ = load(split)
        for kind in ('images', 'masks'):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, mask = cue_scene(rng, digits)
            Image.fromarray(image).save(folder / 'images' / split / f'{number:04d}.png')
            Image.fromarray(mask).save(folder / 'masks' / split / f'{number:04d}.png')


WRITERS = {'digits': write_digits, 'digits-cue': write_cue}


def write(folder: str | Path) -> list[Path]:
    """Write what is missing of the demo data; a set is there wholly or not at all.

    Returns:
        the folders of the sets.
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
    parser.add_argument('folder', nargs='?', default='data/demo', help='where to (default: %(default)s)')
    try:
        for target in write(parser.parse_args().folder):
            print(f'{target}: {sum(1 for _ in target.rglob("*.png"))} images')
    except OSError as error:
        sys.exit(f'error: cannot write the demo data: {error}')


if __name__ == '__main__':
    main()
