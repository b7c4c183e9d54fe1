"""The embedded data: deterministic, written atomically, with a task outside a small ResNet's receptive field."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmsb.datasets import digits
from mmsb.models import SBResNetCifar


def _scenes(count: int, scene=digits.cue_scene) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    drawn, _ = digits.load('val')
    return [scene(rng, drawn) for _ in range(count)]


def _is_patch(image: np.ndarray) -> np.ndarray:
    return np.ptp(image.astype(int), axis=-1) > 85  # the rest of a scene is grey


def test_splits_share_no_digit():
    train, val = (digits.load(split)[0] for split in ('train', 'val'))
    assert len(train) == 1437
    assert len(val) == 360
    seen = {image.tobytes() for image in train}
    assert sum(image.tobytes() in seen for image in val) == 0


def test_files_are_the_same_on_every_machine(demo_data, tmp_path):
    digits.write(tmp_path)
    for name, count in (('digits', 1797), ('digits-cue', 4800), ('digits-mirror', 8800), ('digits-scenes', 2000)):
        paths = sorted((tmp_path / name).rglob('*.png'))
        assert len(paths) == count
        sums = [
            hashlib.sha256(
                b''.join(np.asarray(Image.open(folder / path.relative_to(tmp_path))).tobytes() for path in paths)
            )
            for folder in (tmp_path, demo_data / 'data/demo')
        ]
        assert sums[0].hexdigest() == sums[1].hexdigest()


def test_mask_has_the_colour_of_the_patch_on_digit_pixels():
    colours = np.array(list(digits.CUE_COLOURS.values()))
    classes = set()
    for image, mask in _scenes(40):
        patch = image[_is_patch(image)].mean(0)
        label = np.abs(colours - patch).sum(1).argmin()
        assert set(np.unique(mask)) == {label, digits.IGNORE}
        classes.add(label)
    assert len(classes) == 4


def test_digits_of_the_mirror_have_the_colour_opposite_and_scenes_the_same_colours():
    colours = np.array(list(digits.CUE_COLOURS.values()))
    for image, mask in _scenes(20, digits.mirror_scene):
        cells = image.reshape(8, 8, 8, 8, 3).mean((1, 3))
        patches = np.argwhere(_is_patch(cells))
        labels = [int(np.abs(colours - cells[row, column]).sum(1).argmin()) for row, column in patches]
        assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert patches[:, 1].max() < 2
        expected = np.full((8, 8), digits.IGNORE)
        for (row, column), label in zip(patches, labels, strict=True):
            expected[row, 7 - column] = label
        for row, column in np.ndindex(8, 8):
            found = {*np.unique(mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8])} - {digits.IGNORE}
            assert found == {expected[row, column]} - {digits.IGNORE}


@pytest.mark.parametrize('spatial_bias', [None, {}])
@pytest.mark.parametrize(('depth', 'scene'), [(20, digits.cue_scene), (11, digits.mirror_scene)])
def test_only_spatial_bias_sees_the_patches_from_the_digits(depth, scene, spatial_bias):
    torch.manual_seed(0)
    net = SBResNetCifar(depth, spatial_bias, zero_init_residual=False).double().eval()
    for image, mask in _scenes(8, scene):
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double().requires_grad_()
        out = torch.nn.functional.interpolate(net(x)[-1], mask.shape, mode='bilinear')
        out.sum(1)[0][torch.from_numpy(mask != digits.IGNORE)].sum().backward()
        reached = x.grad[0].abs().sum(0)[torch.from_numpy(_is_patch(image))]
        assert len(reached) > 50
        assert bool((reached > 0).all() if spatial_bias is not None else (reached == 0).all())


@pytest.mark.parametrize('split', ['train', 'val'])
def test_scenes_say_the_same_in_both_formats(split, demo_data):
    coco_api = pytest.importorskip('pycocotools.coco')
    folder = demo_data / 'data/demo/digits-scenes'
    coco = coco_api.COCO(folder / f'annotations/instances_{split}.json')
    assert len(coco.imgs) == digits.WIDE_COUNTS[split]
    classes, labels = set(), set()
    for number, image in list(coco.imgs.items())[:60]:
        mask = np.asarray(Image.open(folder / 'masks' / split / image['file_name']))
        assert mask.shape == (image['height'], image['width']) == (128, 128)
        assert np.asarray(Image.open(folder / 'images' / split / image['file_name'])).shape == (128, 128, 3)
        inks = np.zeros_like(mask, bool)
        annotations = coco.imgToAnns[number]
        assert annotations
        for annotation in annotations:
            ink = coco.annToMask(annotation).astype(bool)
            assert not inks[ink].any(), 'digits do not overlap'
            assert annotation['area'] == ink.sum()
            left, top, width, height = annotation['bbox']
            inside = ink[top : top + height, left : left + width]
            assert inside.sum() == ink.sum()
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])), 'the box is tight'
            inks |= ink
            classes.add(annotation['category_id'])
            assert coco.cats[annotation['category_id']]['name'] == str(annotation['category_id'] - 1)
        assert np.array_equal(mask == digits.DIGIT, inks)
        labels |= set(np.unique(mask))
    assert classes == set(range(1, 11))
    assert labels == {digits.UNLABELLED, digits.DIGIT, digits.DISTRACTOR, digits.BACKGROUND}


def test_an_interrupted_write_leaves_no_set_behind(tmp_path, monkeypatch):
    def fail(folder):
        (folder / 'half').mkdir()
        raise OSError('disk full')

    monkeypatch.setitem(digits.WRITERS, 'digits-cue', fail)
    with pytest.raises(OSError, match='disk full'):
        digits.write(tmp_path)
    assert (tmp_path / 'digits').is_dir()
    assert not (tmp_path / 'digits-cue').exists()
    monkeypatch.undo()
    assert all(folder.is_dir() for folder in digits.write(tmp_path))
    assert not list(tmp_path.glob('.*'))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    command = [sys.executable, '-m', 'mmsb.datasets.digits', str(tmp_path / 'file')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith('error: cannot write the demo data')
    assert len(done.stderr.splitlines()) == 1
