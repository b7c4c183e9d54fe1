"""A folder named like a class has that class's label; files that a dataset leaves out are counted.

The library's own dataset says which label an image gets, and the tables say which class its folder means.
"""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmpretrain.datasets import CustomDataset
from PIL import Image

from mmsb.datasets.check import check_data

LOAD = dict(type='LoadImageFromFile')
NUMBERS = [str(i) for i in range(12)]
SYNSETS = ['n01440764', 'n01443537', 'n01484850']


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), 7, np.uint8)).save(path)


def config(root: Path, folders: dict[str, list[str]], classes=None, lists: dict[str, list[str]] | None = None) -> dict:
    """Write class folders of 2 images for each split, and lists of `FILE LABEL`."""
    cfg = dict(default_scope='mmpretrain', model=dict(head=dict(num_classes=len(classes or folders['train']))))
    for split, names in folders.items():
        for name in names:
            for number in range(2):
                picture(root / split / name / f'{number}.png')
        dataset = dict(type='CustomDataset', data_root=str(root), data_prefix=split, pipeline=[LOAD])
        if classes:
            dataset['metainfo'] = dict(classes=tuple(classes))
        if split in (lists or {}):
            (root / f'{split}.txt').write_text('\n'.join(lists[split]) + '\n')
            dataset['ann_file'] = f'{split}.txt'
        cfg[f'{split}_dataloader'] = dict(dataset=dataset)
    return cfg


def found(cfg: dict) -> list:
    """Return what is found, without the counts of classes, which test_check_pixels.py tests."""
    all_found = [one for report in check_data(Config(cfg)) for one in report.findings]
    return [one for one in all_found if one.kind != 'class that never occurs']


def kinds(cfg: dict) -> set[tuple[str, str]]:
    return {(one.level, one.kind) for one in found(cfg)}


ORDERS = {  # folders, classes, the class that each folder means
    'numbers': (NUMBERS, NUMBERS, NUMBERS),
    'other order': (['cat', 'dog'], ['dog', 'cat'], ['cat', 'dog']),
    'same order': (['cat', 'dog'], ['cat', 'dog'], ['cat', 'dog']),
    'case and separators': (['Cat', 'big-dog', 'red fox'], ['big_dog', 'cat', 'RED_FOX'],
                            ['cat', 'big_dog', 'RED_FOX']),
    'capitals first': (['Zebra', 'ant'], ['ant', 'zebra'], ['zebra', 'ant']),
    'case alone': (['Ant', 'Zebra'], ['ant', 'zebra'], ['ant', 'zebra']),
    'number in front': (['10_emu', '1_cat', '2_dog'], ['cat', 'dog', 'emu'], ['emu', 'cat', 'dog']),
    'padded number in front': (['01.cat', '02.dog', '10.emu'], ['cat', 'dog', 'emu'], ['cat', 'dog', 'emu']),
    'plural': (['cats', 'dogs'], ['dog', 'cat'], ['cat', 'dog']),
    'in one word': (['BigCat', 'tinyDog'], ['tiny dog', 'big_cat'], ['big_cat', 'tiny dog']),
    'padded': (['00', '02', '10'], ['0', '2', '10'], ['0', '2', '10']),
    'accents': (['cafe\u0301', 'tea'], ['tea', 'caf\u00e9'], ['caf\u00e9', 'tea']),
}  # fmt: skip


@pytest.mark.parametrize('name', ORDERS)
def test_order_of_class_folders(name, tmp_path):
    folders, classes, meant = ORDERS[name]
    cfg = config(tmp_path, dict(train=folders, val=folders), classes)
    options = {
        key: value for key, value in cfg['train_dataloader']['dataset'].items() if key not in ('type', 'pipeline')
    }
    given = CustomDataset(**options)  # the labels that the library gives
    first = [given.get_data_info(i) for i in range(0, len(given), 2)]
    by_folder = {Path(one['img_path']).parent.name: classes[one['gt_label']] for one in first}
    wrong = [folder for folder, name_of_class in zip(folders, meant, strict=True) if by_folder[folder] != name_of_class]
    errors = found(cfg)
    assert bool(errors) == bool(wrong)
    if wrong:
        assert [one.kind for one in errors] == ['order of the classes'] * 2
        wrong = [folder for folder in by_folder if folder in wrong]  # as the library sorts them
        assert all(repr(folder) in errors[0].message for folder in wrong[:2])
    if len(wrong) == len(meant) or name == 'numbers':  # the order to write is that of the library's labels
        order = [meant[folders.index(folder)] for folder in by_folder]
        assert f'write classes=({", ".join(map(repr, order))})' in errors[0].message


def test_a_single_folder_with_the_name_of_another_class(tmp_path):
    (one,) = found(config(tmp_path, dict(train=['dog', 'wolf']), ['lupus', 'dog']))
    assert (one.level, one.kind) == ('error', 'order of the classes')
    assert "write classes=('dog', 'lupus')" in one.message


@pytest.mark.parametrize('names', [NUMBERS, [f'class{i}' for i in NUMBERS]])
def test_unpadded_numbers_under_other_names_may_be_meant(names, tmp_path):
    cfg = config(tmp_path, dict(train=names), list('abcdefghijkl'))
    (one,) = found(cfg)
    assert (one.level, one.kind) == ('warning', 'order of the folders')
    assert all(repr(name) in one.message for name in (names[10], names[2]))
    assert found(config(tmp_path / 'few', dict(train=names[:10]), list('abcdefghij'))) == []


SPLITS = {  # folders of the training and the validation, classes, expected, names in the message
    'as many, but others': (['ant', 'bee', 'fox'], ['bee', 'fox', 'gnu'], None, 'error', ['ant', 'bee', 'gnu']),
    'the same with classes': (['ant', 'bee', 'fox'], ['bee', 'fox', 'gnu'], ['ant', 'bee', 'fox'], 'error',
                              ['ant', 'bee', 'gnu']),
    'the last one': (SYNSETS, [*SYNSETS[:2], 'n02'], ['a', 'b', 'c'], 'error', [SYNSETS[2], 'n02']),
    'one more in the middle': (['ant', 'fox'], ['ant', 'bee', 'fox'], None, 'error', ['bee', 'fox']),
    'one fewer in the middle': (['ant', 'bee', 'fox'], ['ant', 'fox'], None, 'error', ['bee', 'fox']),
    'one fewer at the end': (['ant', 'bee', 'fox'], ['ant', 'bee'], None, 'warning', ['fox']),
    'one fewer, with classes': (['ant', 'bee', 'fox'], ['ant', 'fox'], ['ant', 'bee', 'fox'], 'error', ['bee']),
    'one fewer of synsets': (SYNSETS, SYNSETS[1:], ['a', 'b', 'c'], 'error', [SYNSETS[0]]),
    'one more than classes': (['ant', 'bee'], ['ant', 'bee', 'fox'], ['ant', 'bee'], 'error', ['fox']),
    'hidden in one': (['ant', 'bee'], ['@eaDir', 'ant', 'bee'], None, 'error', ['@eaDir']),
    'hidden with classes': (['ant', 'bee'], ['.ipynb_checkpoints', 'ant', 'bee'], ['ant', 'bee'], 'error',
                            ['.ipynb_checkpoints']),
    'same': (['ant', 'bee'], ['ant', 'bee'], None, None, []),
    'synsets': (SYNSETS, SYNSETS, ['tench', 'goldfish', 'shark'], None, []),
    'other case': (['ant', 'bee'], ['Ant', 'Bee'], None, None, []),
}  # fmt: skip


@pytest.mark.parametrize('name', SPLITS)
def test_folders_of_validation(name, tmp_path):
    train, val, classes, level, names = SPLITS[name]
    report = check_data(Config(config(tmp_path, dict(train=train, val=val), classes)))[1]
    same = [one for one in report.findings if one.level == level]
    assert bool(report.findings) == bool(level)
    assert all(any(part in f'{one.file} {one.message}' for one in same) for part in names), list(report.lines())
    assert level == 'error' or not report.count('error')


def test_hidden_folders_of_both_splits_are_classes_to_the_library(tmp_path):
    for name in ('.git', '__MACOSX'):
        cfg = config(tmp_path / name, {split: [name, 'ant', 'bee'] for split in ('train', 'val')})
        assert [(one.kind, Path(one.file).name) for one in found(cfg)] == [('hidden folder', name)] * 2
    assert found(config(tmp_path / 'meant', dict(train=['.net', 'java']), ['.net', 'java'])) == []


def test_validation_without_classes_whose_folders_are_the_same(tmp_path):
    cfg = config(tmp_path, dict(train=SYNSETS, val=SYNSETS), ['tench', 'goldfish', 'shark'])
    del cfg['val_dataloader']['dataset']['metainfo']
    assert found(cfg) == []


CAT_DOG = ['cat', 'dog']
LISTS = {  # lines of the training's list, what is found
    'sound': (['cat/0.png 0', 'cat/1.png 0', 'dog/0.png 1'], set()),
    'exchanged': (['cat/0.png 1', 'cat/1.png 1', 'dog/0.png 0'], {('error', 'order of the classes')}),
    'one line': (['cat/0.png 0', 'cat/1.png 0', 'cat/2.png 1', 'dog/0.png 1'], {('warning', 'label of another class')}),
    'from 1': (['cat/0.png 1', 'cat/1.png 1', 'dog/0.png 2'], {('error', 'label beyond the classes')}),
    'gone': (['cat/0.png 0', 'cat/7.png 0', 'dog/0.png 1'], {('error', 'missing image')}),
    'other suffix': (['cat/0.jpg 0', 'dog/0.png 1'],
                     {('error', 'missing image'), ('error', 'image with another suffix')}),
}  # fmt: skip


@pytest.mark.parametrize('name', LISTS)
def test_lists_of_images_in_class_folders(name, tmp_path):
    lines, expected = LISTS[name]
    picture(tmp_path / 'train/cat/2.png')
    assert kinds(config(tmp_path, dict(train=CAT_DOG), CAT_DOG, dict(train=lines))) == expected


def test_shards_and_splits_that_are_named_like_classes(tmp_path):
    lines = [f'{shard}/{number}.png {number}' for shard in '012' for number in range(2)]  # all labels in all folders
    assert found(config(tmp_path, dict(train=['0', '1', '2']), ['0', '1'], dict(train=lines))) == []
    root = tmp_path / 'vehicles'
    cfg = config(root, dict(train=['train']), ['bus', 'train'], dict(train=['train/0.png 0', 'train/1.png 1']))
    assert found(cfg) == []


def test_labels_from_1_whose_number_of_classes_was_raised(tmp_path):
    lines = [f'{name}/0.png {label}' for label, name in enumerate(SYNSETS, start=1)]
    cfg = config(tmp_path, dict(train=SYNSETS), None, dict(train=lines))
    cfg['model']['head']['num_classes'] = 4
    (one,) = found(cfg)
    assert (one.level, one.kind) == ('warning', 'label 0 occurs nowhere')
    assert 'num_classes to 3' in one.message


def test_folders_that_sort_otherwise_than_the_labels_of_a_list(tmp_path):
    lines = [f'{name}/0.png {name}' for name in NUMBERS]
    cfg = config(tmp_path, dict(train=NUMBERS, val=NUMBERS), None, dict(val=lines))
    assert kinds(cfg) == {('error', 'other classes')}


def test_two_lists_of_one_folder(tmp_path):
    lists = dict(train=['cat/0.png 0', 'dog/0.png 1'], val=['cat/1.png 1', 'dog/1.png 0'])
    cfg = config(tmp_path, dict(train=CAT_DOG), None, dict(train=lists['train']))
    (tmp_path / 'val.txt').write_text('\n'.join(lists['val']))
    cfg['val_dataloader'] = dict(dataset=dict(cfg['train_dataloader']['dataset'], ann_file='val.txt'))
    assert kinds(cfg) == {('error', 'other classes')}


def test_people_in_numbered_folders_who_are_mostly_of_one_class(tmp_path):
    lines = [f'{person}/{number}.png {label}' for person in '12' for number, label in enumerate([0, 0, 0, 0, 1, 2])]
    for person in '12':
        for number in range(6):
            picture(tmp_path / f'train/{person}/{number}.png')
    assert found(config(tmp_path, dict(train=['1', '2']), ['0', '1', '2'], dict(train=lines))) == []


def test_a_subset_and_a_flat_list_are_sound(tmp_path):
    cfg = config(tmp_path, dict(train=SYNSETS, val=['']), ['a', 'b', 'c'], dict(val=['0.png 2', '1.png 0']))
    cfg['train_dataloader']['dataset']['indices'] = 1
    assert found(cfg) == []


def test_suffixes_of_class_folders(tmp_path):
    cfg = config(tmp_path, dict(train=CAT_DOG), CAT_DOG)
    for name in ('a.webp', 'b.WEBP', 'c.jfif', '0.dng', '.d.webp', 'Thumbs.db', 'notes.txt', 'e.json'):
        (tmp_path / 'train/dog' / name).touch()  # 0.dng stands beside 0.png
    (one,) = found(cfg)
    assert one.level == 'warning'
    parts = ('3 of 7 images have other suffixes', '.webp 1', '.WEBP 1', '.jfif 1')
    assert all(part in one.message for part in parts)
    cfg['train_dataloader']['dataset']['extensions'] = ('.png', '.webp', '.jfif')
    for path in tmp_path.glob('train/dog/[abc].*'):
        picture(path.with_suffix('.png'))
        path.unlink()
    assert found(cfg) == []
    picture(tmp_path / 'train/beside.png')
    assert kinds(cfg) == {('warning', 'image without class')}


def test_only_other_suffixes(tmp_path):
    cfg = config(tmp_path, dict(train=CAT_DOG), CAT_DOG)
    for path in tmp_path.glob('train/*/*'):
        path.rename(path.with_suffix('.webp'))
    (one,) = found(cfg)
    assert (one.level, one.kind) == ('error', 'empty split')
    assert '4 of 4 images have other suffixes (.webp 4)' in one.message


def scenes(root: Path, images: list[str], masks: list[str], **options) -> dict:
    for folder, names in (('images', images), ('masks', masks)):
        for name in names:
            (root / folder).mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((6, 8, 3) if folder == 'images' else (6, 8), np.uint8)
            pixels[:3] = 1
            Image.fromarray(pixels).save(root / folder / name)
    dataset = dict(
        type='BaseSegDataset', data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=('ground', 'thing')), pipeline=[LOAD, dict(type='LoadAnnotations')], **options,
    )  # fmt: skip
    return dict(
        default_scope='mmseg',
        model=dict(decode_head=dict(num_classes=2)),
        train_dataloader=dict(dataset=dataset),
    )


SCENES = {  # images, masks, options, what is found, a part of the message
    'sound': (['0.jpg', '1.jpg'], ['0.png', '1.png'], {}, set(), ''),
    'other suffix': (['0.jpg', '1.png'], ['0.png', '1.png'], {}, {('warning', 'image with another suffix')}, '.png 1'),
    'capitals': (['0.jpg', '1.JPG'], ['0.png', '1.png'], {}, {('warning', 'image with another suffix')}, '.JPG 1'),
    'no image': (['0.jpg'], ['0.png', '1.png'], {}, {('warning', 'mask without image')}, '1 of 2 masks'),
    'no mask': (['0.jpg', '1.jpg'], ['0.png'], {}, {('error', 'missing mask')}, ''),
    'mask in capitals': (['0.jpg', '1.jpg'], ['0.png', '1.PNG'], {},
                         {('error', 'missing mask'), ('error', 'mask with another suffix')}, '.PNG 1'),
    'marked names': (['0_rgb.png', '0_depth.png'], ['0_label.png', '0_colour.png'],
                     dict(img_suffix='_rgb.png', seg_map_suffix='_label.png'), set(), ''),
    'marked names in another format': (['0_rgb.png', '1_rgb.jpg'], ['0_label.png'],
                                       dict(img_suffix='_rgb.png', seg_map_suffix='_label.png'),
                                       {('warning', 'image with another suffix')}, '.jpg 1'),
}  # fmt: skip


@pytest.mark.parametrize('name', SCENES)
def test_suffixes_of_segmentation(name, tmp_path):
    images, masks, options, expected, part = SCENES[name]
    cfg = scenes(tmp_path, images, masks, **options)
    assert kinds(cfg) == expected
    assert part in ' '.join(one.message for one in found(cfg))


def test_masks_of_two_splits_in_one_folder(tmp_path):
    cfg = scenes(tmp_path, ['0.jpg'], ['0.png', '1.png'])
    picture(tmp_path / 'others/1.jpg')
    other = dict(cfg['train_dataloader']['dataset'], data_prefix=dict(img_path='others', seg_map_path='masks'))
    cfg['val_dataloader'] = dict(dataset=other)
    assert found(cfg) == []


def test_images_beside_their_masks(tmp_path):
    cfg = scenes(tmp_path, ['0.jpg'], [])
    Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(tmp_path / 'images/0.png')
    cfg['train_dataloader']['dataset']['data_prefix']['seg_map_path'] = 'images'
    assert found(cfg) == []
