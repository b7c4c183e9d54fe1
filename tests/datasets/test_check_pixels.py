"""The data check says what the numbers in images and masks mean to the network, and how often each class occurs."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from test_check import LOAD, SIZE_PX, coco, folders, found, labels, mask, scenes

MEAN = dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])
WIDTH, HEIGHT = SIZE_PX


def kinds(cfg: dict, level: str = 'warning') -> dict:
    """Map the kind of each finding of a level to its message, for the training set."""
    return {one.kind: one.message for one in found(cfg, loaders=('train_dataloader',)) if one.level == level}


def repaint(root, array: np.ndarray, suffix: str = '.jpg') -> None:
    for path in (root / 'train').rglob('*.jpg'):
        path.unlink()
        cv2.imwrite(str(path.with_suffix(suffix)), array)


def ramp(highest: float, kind) -> np.ndarray:
    return np.linspace(0, highest, WIDTH * HEIGHT * 3).reshape(HEIGHT, WIDTH, 3).astype(kind)


@pytest.mark.parametrize(
    ('array', 'suffix', 'says'),
    [
        (ramp(4095, np.uint16), '.png', 'uint16 values up to 4,095, of which the pipeline reads uint8 values up to 15'),
        (ramp(1023, np.uint16), '.png', 'uint16 values up to 1,023, of which the pipeline reads uint8 values up to 3'),
        (ramp(0.9, np.float32), '.tif', 'float32 values up to 0.9'),
        (ramp(1, np.uint8), '.png', 'reads uint8 values up to 1 in 6 images, all below the mean [123.7, 116.3, 103.5]'),
        (ramp(65535, np.uint16), '.png', None),
        (ramp(255, np.uint8), '.png', None),
        (ramp(255, np.uint8), '.tif', None),
        (ramp(110, np.uint8), '.png', None),
    ],
    ids=['12 bits', '10 bits', 'floats', '0 and 1', '16 bits', '8 bits', 'tiff', 'dim'],
)
def test_range_of_the_pixels(array, suffix, says, tmp_path):
    cfg = folders(tmp_path)
    cfg['model']['data_preprocessor'] = MEAN
    repaint(tmp_path, array, suffix)
    told = kinds(cfg)
    assert set(told) == ({'range of the pixels'} if says else set())
    assert says is None or says in told['range of the pixels']


def test_values_beyond_8_bits_that_reach_the_network(tmp_path):
    cfg = folders(tmp_path)
    cfg['train_dataloader']['dataset']['pipeline'] = [dict(LOAD, color_type='unchanged')]
    repaint(tmp_path, ramp(4095, np.uint16), '.png')
    assert kinds(cfg) == {}  # nothing normalises
    cfg['model']['data_preprocessor'] = MEAN
    assert 'reads uint16 values up to 4,095, but mean' in kinds(cfg)['range of the pixels']
    cfg['model']['data_preprocessor'] = dict(mean=[2000.0] * 3, std=[900.0] * 3)
    assert kinds(cfg) == {}


@pytest.mark.parametrize(
    ('orientation', 'size', 'turns'),
    [
        (1, SIZE_PX, False),
        (2, SIZE_PX, True),
        (3, SIZE_PX, True),
        (6, (HEIGHT, WIDTH), False),  # width and height show it
        (8, (WIDTH, WIDTH), True),  # in a square they don't
    ],
)
@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
def test_a_turn_that_no_size_shows(orientation, size, turns, color_type, tmp_path):
    cfg, content = coco(tmp_path)
    cfg['train_dataloader']['dataset']['pipeline'] = [dict(LOAD, color_type=color_type)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.full((size[1], size[0], 3), 200, np.uint8)
    for image in content['images']:
        path = next(tmp_path.rglob(image['file_name']))
        Image.fromarray(array).save(path, exif=exif)
        asks = size if color_type != 'color' or orientation < 5 else size[::-1]
        image.update(width=asks[0], height=asks[1])
    (tmp_path / 'train.json').write_text(json.dumps(content))
    assert ('turned image' in kinds(cfg)) == (turns and color_type == 'color')
    if turns and color_type == 'color':
        assert "color_type='color_ignore_orientation'" in kinds(cfg)['turned image']


def binary(root, *values: int, reduced: bool = False, **head) -> dict:
    cfg = scenes(root)
    cfg['model']['decode_head'] = dict(num_classes=2, loss_decode=dict(type='CrossEntropyLoss')) | head
    data = cfg['train_dataloader']['dataset']
    names = ['background', 'thing'][: cfg['model']['decode_head']['num_classes']]
    data.update(type='BaseSegDataset', metainfo=dict(classes=names, palette=[[0, 0, 0]] * len(names)),
                reduce_zero_label=reduced, img_suffix='.jpg', seg_map_suffix='.png')  # fmt: skip
    data['pipeline'] = [LOAD, dict(type='LoadAnnotations')]
    for path in root.glob('masks/train/*'):
        mask(path, labels(*values))
    return cfg


@pytest.mark.parametrize(
    ('values', 'reduced', 'says'),
    [
        ((0, 1), False, None),
        ((0, 1, 1, 255), False, None),
        ((0, 255, 255, 255), False, "occurs in no mask (background 25.0%, ignored 75.0%): if 255 stands for"),
        ((0, 1), True, "occurs in no mask (background 50.0%, ignored 50.0%): reduce_zero_label=True ignores"),
        ((0, 0), False, "'thing' of 2 occurs in no mask (background 100.0%)"),
        ((0, 1, 255, 255, 255, 255), False, '66.7% of the pixels of its masks are ignored: if 255 stands for'),
    ],
)  # fmt: skip
def test_classes_in_masks(values, reduced, says, tmp_path):
    told = list(kinds(binary(tmp_path, *values, reduced=reduced)).values())
    assert len(told) == (says is not None)
    assert says is None or says in told[0]


@pytest.mark.parametrize(
    ('head', 'says'),
    [
        (dict(num_classes=1), True),
        (dict(num_classes=1, loss_decode=[dict(type='CrossEntropyLoss')]), True),
        (dict(num_classes=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)), False),
        (dict(num_classes=1, loss_decode=dict(type='DiceLoss')), False),
    ],
)
def test_softmax_of_one_class(head, says, tmp_path):
    assert ('one class' in kinds(binary(tmp_path, 0, 0, **head))) == says


def test_several_labels_of_an_image_and_a_class_without_any(tmp_path):
    cfg = folders(tmp_path)
    lists = [[0], [], [0, 2], [2]]
    entries = [dict(img_path=f'a/{i % 3}.jpg', gt_label=own) for i, own in enumerate(lists)]
    content = dict(metainfo=dict(classes=['red', 'green', 'blue']), data_list=entries)
    (tmp_path / 'all.json').write_text(json.dumps(content))
    cfg['model']['head']['num_classes'] = 3
    cfg['train_dataloader']['dataset'].update(type='MultiLabelDataset', ann_file='all.json')
    assert kinds(cfg, 'error') == {}
    assert kinds(cfg) == {'class that never occurs': "class 'green' of 3 occurs in no image (red 2, blue 2)"}
    entries[1]['gt_label'] = [1, 3]
    (tmp_path / 'all.json').write_text(json.dumps(content))
    assert kinds(cfg, 'error') == {'label beyond the classes': 'is outside the 3 classes (0 to 2)'}


def test_a_class_in_no_box(tmp_path):
    cfg, content = coco(tmp_path)
    assert kinds(cfg) == {}
    for one in content['annotations']:
        one['iscrowd'] = int(one['category_id'] == 7)  # not learnt from
    (tmp_path / 'train.json').write_text(json.dumps(content))
    assert kinds(cfg) == {'class that never occurs': "class 'cat' of 2 occurs in no box (dog 3)"}
