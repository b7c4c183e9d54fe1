"""The data check reports every planted fault with its file and item, and reports nothing for valid data."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmsb.datasets.check import check_data, findings
from mmsb.datasets.check.samples import damage
from mmsb.datasets.paths import check_paths

SIZE_PX = (40, 30)  # width, height
LOAD = dict(type='LoadImageFromFile')
COUNT = 3  # images of a split


def picture(path: Path, size: tuple[int, int] = SIZE_PX) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)


def found(cfg: dict, **options) -> list[findings.Finding]:
    return [one for report in check_data(Config(cfg), **options) for one in report.findings]


def is_there(all_found: list, level: str, kind: str, file: str, item: str) -> bool:
    """Return whether a fault was found, and nothing else of its level."""
    same = [one for one in all_found if one.level == level]
    return bool(same) and all(one.kind == kind and file in one.file and one.item == item for one in same)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Classification: class folders, or an annotation file of lines.


def folders(root: Path) -> dict:
    for split in ('train', 'val'):
        for name in 'ab':
            for number in range(COUNT):
                picture(root / split / name / f'{number}.jpg')
    cfg = dict(default_scope='mmpretrain', model=dict(head=dict(num_classes=2)))
    for split in ('train', 'val'):
        dataset = dict(type='CustomDataset', data_root=str(root), data_prefix=split, pipeline=[LOAD])
        cfg[f'{split}_dataloader'] = dict(dataset=dataset)
    return cfg


def listed(root: Path, cfg: dict, *lines: str) -> None:
    (root / 'train.txt').write_text('\n'.join(lines) + '\n')
    cfg['train_dataloader']['dataset'].update(ann_file='train.txt', metainfo=dict(classes=['a', 'b']))


def no_image_in(root: Path) -> None:
    for path in (root / 'train/b').iterdir():
        path.unlink()


FOLDER_FAULTS = {
    'zero bytes': (lambda r, c: (r / 'train/a/0.jpg').write_bytes(b''), 'damaged image', 'train/a/0.jpg', ''),
    'truncated': (lambda r, c: truncate(r / 'val/b/1.jpg'), 'damaged image', 'val/b/1.jpg', ''),
    'no image': (lambda r, c: (r / 'train/a/0.jpg').write_bytes(b'text' * 9), 'unreadable image', 'train/a/0.jpg', ''),
    'class without images': (lambda r, c: no_image_in(r), 'empty class folder', 'train/b', ''),
    'label beyond': (lambda r, c: listed(r, c, 'a/0.jpg 0', 'b/0.jpg 2'), 'label beyond the classes', 'b/0.jpg',
                     'label 2'),
    'label in words': (lambda r, c: listed(r, c, 'a/0.jpg 0', 'b/0.jpg cat'), 'malformed line', 'train.txt', 'line 2'),
    'listed, not there': (lambda r, c: listed(r, c, 'a/9.jpg 0', 'b/0.jpg 1'), 'missing image', 'a/9.jpg', ''),
    'list not there': (lambda r, c: c['train_dataloader']['dataset'].update(ann_file='no.txt'), 'missing annotations',
                       'no.txt', ''),
    'root not there': (lambda r, c: c['val_dataloader']['dataset'].update(data_root='nowhere'), 'missing folder',
                       'nowhere', ''),
    'folder not there': (lambda r, c: c['val_dataloader']['dataset'].update(data_prefix='test'),
                         'missing image folder', 'test', ''),
    'shifted classes': (lambda r, c: (r / 'val/a').rename(r / 'val/c'), 'other classes', 'val_dataloader.dataset', ''),
    'too few outputs': (lambda r, c: picture(r / 'val/c/0.jpg') or picture(r / 'train/c/0.jpg'), None, None, None),
    'unknown option': (lambda r, c: c['val_dataloader']['dataset'].update(colour=1), 'unusable dataset',
                       'val_dataloader.dataset', ''),
}  # fmt: skip


@pytest.mark.parametrize('name', FOLDER_FAULTS)
def test_faults_of_class_folders(name, tmp_path):
    cfg = folders(tmp_path)
    plant, kind, file, item = FOLDER_FAULTS[name]
    plant(tmp_path, cfg)
    errors = found(cfg)
    if kind is None:
        assert {one.kind for one in errors} == {'number of classes', 'label beyond the classes'}
    else:
        assert is_there(errors, 'error', kind, file, item), [str(one) for one in errors]


def test_sound_class_folders_and_wrapped_datasets(tmp_path):
    cfg = folders(tmp_path)
    inner = cfg['train_dataloader']['dataset']
    cfg['train_dataloader']['dataset'] = dict(
        type='RepeatDataset', times=9, dataset=dict(type='ConcatDataset', datasets=[inner, inner])
    )
    cfg['test_dataloader'] = cfg['val_dataloader']
    seen = []
    reports = check_data(Config(cfg), workers=2, on_progress=lambda *at: seen.append(at))
    assert [(report.split, report.images, report.findings) for report in reports] == [
        ('train', 4 * COUNT, []),
        ('val and test', 2 * COUNT, []),
    ]
    assert ('val', 2 * COUNT, 2 * COUNT) in seen
    truncate(tmp_path / 'train/a/0.jpg')
    assert is_there(found(cfg), 'error', 'damaged image', 'train/a/0.jpg', '')


def test_cifar_that_is_not_there_is_not_downloaded_by_the_check(tmp_path):
    dataset = dict(type='CIFAR100', data_root=str(tmp_path))
    cfg = dict(default_scope='mmpretrain', model=dict(), train_dataloader=dict(dataset=dataset))
    assert is_there(found(cfg), 'warning', 'missing data', str(tmp_path), '')
    dataset['download'] = False
    assert is_there(found(cfg), 'error', 'unusable dataset', 'train_dataloader.dataset', '')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'bmp'])
def test_truncation_of_all_formats(suffix, tmp_path):
    path = tmp_path / f'0.{suffix}'
    picture(path)
    assert damage(path.read_bytes()) is None
    truncate(path)
    assert damage(path.read_bytes())[1]


def test_at_least_one_worker():
    with pytest.raises(ValueError, match='at least 1, got 0'):
        check_data(Config(dict(model=dict())), workers=0)


def test_report_is_short_and_sums_up():
    warnings = [findings.warning('empty box', 'file', f'annotation id {i}', 'is empty') for i in range(25)]
    report = findings.Report('train', 1000, [*warnings, findings.error('missing image', 'a.jpg', '', 'is gone')])
    lines = list(report.lines())
    assert lines[0] == 'error: a.jpg: is gone'
    assert lines[1] == 'warning: file: annotation id 0: is empty'
    assert lines[-2:] == ['warning: empty box: ... and 5 more', 'train: 1,000 images, 1 error, 25 warnings']
    assert len(lines) == 23


# Detection.


def coco(root: Path) -> tuple[dict, dict]:
    """Write a valid dataset; return its config and training annotations. Box 11 crosses the border by rounding."""
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=SIZE_PX[0], height=SIZE_PX[1]) for i in range(1, COUNT + 1)],
        annotations=[
            dict(id=10 * i + j, image_id=i, category_id=7 + j, bbox=box, area=80, iscrowd=int(i == j == 1))
            for i in range(1, COUNT)  # the last image has none
            for j, box in enumerate(([5, 5, 10, 8], [-0.001, 20.5, 40.002, 9.6]))
        ],
        categories=[dict(id=7, name='cat'), dict(id=8, name='dog')],
    )
    box_head = dict(num_classes=2)
    cfg = dict(default_scope='mmdet', model=dict(roi_head=dict(bbox_head=[box_head, dict(box_head)])))
    for split in ('train', 'val'):
        for image in content['images']:
            picture(root / split / image['file_name'])
        (root / f'{split}.json').write_text(json.dumps(content))
        dataset = dict(type='CocoDataset', data_root=str(root), data_prefix=dict(img=split), ann_file=f'{split}.json')
        dataset.update(metainfo=dict(classes=('cat', 'dog')), pipeline=[LOAD], test_mode=split == 'val')
        cfg[f'{split}_dataloader'] = dict(dataset=dataset)
    cfg['train_dataloader']['dataset']['filter_cfg'] = dict(filter_empty_gt=True, min_size=8)
    cfg['val_evaluator'] = [dict(type='CocoMetric', ann_file=str(root / 'val.json'))]
    return cfg, content


def box(**values):
    return lambda root, cfg, content: content['annotations'][0].update(values)


def drop(section: str, key: str):
    return lambda root, cfg, content: content[section][0].pop(key)


def again(section: str):
    return lambda root, cfg, content: content[section].append(content[section][0])


def dataset(split: str, **values):
    return lambda root, cfg, content: cfg[f'{split}_dataloader']['dataset'].update(values)


FIRST = 'annotation id 10'
COCO_FAULTS = {
    'partly outside': ('warning', box(bbox=[30, 5, 12, 8]), 'box partly outside', 'train.json', FIRST),
    'outside': ('warning', box(bbox=[50, 5, 12, 8]), 'box outside', 'train.json', FIRST),
    'zero width': ('warning', box(bbox=[5, 5, 0, 8]), 'empty box', 'train.json', FIRST),
    'negative height': ('warning', box(bbox=[5, 5, 9, -8]), 'empty box', 'train.json', FIRST),
    'no area': ('warning', box(area=0), 'empty box', 'train.json', FIRST),
    'not finite': ('error', box(bbox=[5, float('nan'), 9, 8]), 'non-finite box', 'train.json', FIRST),
    'three numbers': ('error', box(bbox=[5, 9, 8]), 'malformed box', 'train.json', FIRST),
    'id that is none': ('error', box(id=[10]), 'malformed entry', 'train.json', 'annotations[0]'),
    'no such category': ('error', box(category_id=1), 'unknown category_id', 'train.json', FIRST),
    'no such image': ('warning', box(image_id=99), 'annotation without image', 'train.json', FIRST),
    'annotation without area': ('error', drop('annotations', 'area'), 'missing key', 'train.json', FIRST),
    'image without height': ('error', drop('images', 'height'), 'missing key', 'train.json', 'image id 1'),
    'no categories': ('error', lambda r, c, f: f.pop('categories'), 'missing key', 'train.json', ''),
    'image twice': ('error', again('images'), 'duplicate image id', 'train.json', 'image id 1'),
    'annotation twice': ('error', again('annotations'), 'duplicate annotation id', 'train.json', FIRST),
    'other size': ('error', lambda r, c, f: picture(r / 'train/1.jpg', (30, 40)), 'image of another size',
                   'train/1.jpg', 'image id 1'),
    'truncated': ('error', lambda r, c, f: truncate(r / 'train/2.jpg'), 'damaged image', 'train/2.jpg', 'image id 2'),
    'missing': ('error', lambda r, c, f: (r / 'train/2.jpg').unlink(), 'missing image', 'train/2.jpg', 'image id 2'),
    'missing folder': ('error', dataset('train', data_prefix=dict(img='images')), 'missing image folder', 'images',
                       ''),
    'missing file': ('error', dataset('train', ann_file='no.json'), 'missing annotations', 'no.json', ''),
    'file of a metric': ('error', lambda r, c, f: c['val_evaluator'][0].update(ann_file='no.json'),
                         'missing annotations', 'no.json', ''),
    'unknown to the classes': ('warning', lambda r, c, f: f['categories'].append(dict(id=9, name='cow')),
                               'category without class', 'train.json', 'category id 9'),
    'number of classes': ('error', lambda r, c, f: c['model']['roi_head']['bbox_head'][1].update(num_classes=80),
                          'number of classes', 'model.roi_head.bbox_head.1.num_classes', ''),
}  # fmt: skip
SEVERAL_COCO_FAULTS = {  # several findings from one cause
    'other order of the file': (lambda r, c, f: f['categories'].reverse(), {'order of the classes'}),
    'other order of the classes': (
        dataset('val', metainfo=dict(classes=('dog', 'cat'))),
        {'order of the classes', 'other classes'},
    ),
    'category removed': (lambda r, c, f: f['categories'].pop(), {'unknown category_id'}),
    'no masks': (
        dataset('train', pipeline=[LOAD, dict(type='LoadAnnotations', with_mask=True)]),
        {'annotation without mask'},
    ),
    'classes of another set': (
        dataset('train', metainfo=dict(classes=('a', 'b'))),
        {'empty split', 'other classes'},
    ),
    'one class as a word': (
        dataset('train', metainfo=dict(classes='cat')),
        {'other classes', 'number of classes'},
    ),
}


@pytest.mark.parametrize('name', COCO_FAULTS)
def test_faults_of_coco(name, tmp_path):
    cfg, content = coco(tmp_path)
    level, plant, kind, file, item = COCO_FAULTS[name]
    plant(tmp_path, cfg, content)
    (tmp_path / 'train.json').write_text(json.dumps(content))
    all_found = found(cfg)
    text = '\n'.join(map(str, all_found))
    assert is_there(all_found, level, kind, file, item), text
    assert len(all_found) == (2 if name == 'number of classes' else 1), text  # in both splits


@pytest.mark.parametrize('name', SEVERAL_COCO_FAULTS)
def test_faults_of_coco_with_several_effects(name, tmp_path):
    cfg, content = coco(tmp_path)
    plant, kinds = SEVERAL_COCO_FAULTS[name]
    plant(tmp_path, cfg, content)
    (tmp_path / 'train.json').write_text(json.dumps(content))
    assert {one.kind for one in found(cfg) if one.level == 'error'} == kinds


def test_class_that_a_file_lacks(tmp_path):
    cfg, _ = coco(tmp_path)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader']['dataset']['metainfo'] = dict(classes=('cat', 'dog', 'cow'))
    cfg['model']['roi_head']['bbox_head'] = dict(num_classes=3)
    assert [(one.level, one.kind) for one in found(cfg)] == [
        ('warning', 'class without boxes'),  # train
        ('error', 'class without category'),  # val
    ]


def test_sound_coco_and_its_metric(tmp_path):
    cfg, content = coco(tmp_path)
    reports = check_data(Config(cfg))
    assert [(report.images, report.findings) for report in reports] == [(COUNT - 1, []), (COUNT, [])]
    content['images'].pop()
    del content['annotations'][0]['iscrowd']
    (tmp_path / 'other.json').write_text(json.dumps(content))
    cfg['val_evaluator'][0]['ann_file'] = str(tmp_path / 'other.json')
    assert {(one.kind, one.item) for one in found(cfg)} == {
        ('metric of other images', f'image id {COUNT}'),
        ('missing key', FIRST),
    }
    (tmp_path / 'train.json').write_text('{"images": [')
    assert 'unreadable annotations' in {one.kind for one in found(cfg)}


def test_file_without_annotations_is_sound_for_a_test_alone(tmp_path):
    cfg, content = coco(tmp_path)
    del content['annotations']
    (tmp_path / 'val.json').write_text(json.dumps(content))
    assert {(one.level, one.kind) for one in found(cfg)} == {('warning', 'missing key')}
    (tmp_path / 'train.json').write_text(json.dumps(content))
    assert ('error', 'missing key') in {(one.level, one.kind) for one in found(cfg)}


def test_corners_instead_of_sizes_are_noticed(tmp_path):
    cfg, content = coco(tmp_path)
    content['annotations'] = [
        dict(id=i, image_id=1, category_id=7, bbox=[20, 15, 39, 29], area=80, iscrowd=0) for i in range(10)
    ]
    (tmp_path / 'train.json').write_text(json.dumps(content))
    assert is_there(found(cfg), 'error', 'box format', 'train.json', '')


# Segmentation.


def mask(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def labels(*values: int, kind=np.uint8) -> np.ndarray:
    return np.resize(np.array(values, kind), SIZE_PX[::-1])


def scenes(root: Path) -> dict:
    cfg = dict(default_scope='mmseg', model=dict(decode_head=dict(num_classes=150), auxiliary_head=[]))
    for split in ('train', 'val'):
        for number in range(COUNT):
            picture(root / f'images/{split}/{number}.jpg')
            mask(root / f'masks/{split}/{number}.png', labels(0, 1, 150))
        folders_of = dict(img_path=f'images/{split}', seg_map_path=f'masks/{split}')
        steps = [LOAD, dict(type='LoadAnnotations', reduce_zero_label=True)]
        scene = dict(type='ADE20KDataset', data_root=str(root), data_prefix=folders_of, pipeline=steps)
        cfg[f'{split}_dataloader'] = dict(dataset=scene)
    cfg['val_evaluator'] = dict(type='IoUMetric')
    return cfg


MASK = 'masks/train/1.png'
SCENE_FAULTS = {
    'missing': (lambda r, c: (r / MASK).unlink(), 'missing mask'),
    'other size': (lambda r, c: mask(r / MASK, labels(0, 1).T.copy()), 'mask of another size'),
    'colours': (lambda r, c: picture(r / MASK), 'mask of several channels'),
    'label beyond': (lambda r, c: mask(r / MASK, labels(0, 151)), 'label beyond the classes'),
    'wide labels': (lambda r, c: mask(r / MASK, labels(0, 257, kind=np.uint16)), 'label beyond the classes'),
    'truncated': (lambda r, c: truncate(r / MASK), 'damaged mask'),
    'no mask': (lambda r, c: (r / MASK).write_bytes(b'text' * 9), 'unreadable mask'),
}


@pytest.mark.parametrize('name', SCENE_FAULTS)
def test_faults_of_masks(name, tmp_path):
    cfg = scenes(tmp_path)
    plant, kind = SCENE_FAULTS[name]
    plant(tmp_path, cfg)
    all_found = found(cfg)
    assert is_there(all_found, 'error', kind, MASK, ''), [str(one) for one in all_found]


def test_sound_scenes_and_labels_that_are_left_out(tmp_path):
    cfg = scenes(tmp_path)
    assert found(cfg, workers=2) == []
    for path in tmp_path.glob('masks/*/*.png'):
        mask(path, labels(0, 1, 200))
    assert len(found(cfg)) == 2 * COUNT
    cfg['model']['decode_head']['ignore_index'] = cfg['val_evaluator']['ignore_index'] = 199  # 200 - 1
    assert {one.message.split(' (')[0] for one in found(cfg)} == {'labels [255]'}  # the reduced label 0
    palette = Image.fromarray(labels(1, 2)).convert('P')
    for path in tmp_path.glob('masks/*/*.png'):
        palette.putdata(labels(1, 2).ravel().tolist())
        palette.save(path)
    assert found(cfg) == []


@pytest.mark.parametrize(
    ('plant', 'kind'),
    [
        (lambda r, c: [mask(path, labels(0, 0)) for path in r.glob('masks/train/*')], 'empty split'),
        (lambda r, c: c['train_dataloader']['dataset'].update(img_suffix='.png'), 'empty split'),
        (lambda r, c: c['model']['auxiliary_head'].append(dict(num_classes=151)), 'number of classes'),
    ],
    ids=['only ignored pixels', 'other suffix', 'number of classes'],
)
def test_faults_of_a_whole_split(plant, kind, tmp_path):
    cfg = scenes(tmp_path)
    plant(tmp_path, cfg)
    assert {one.kind for one in found(cfg)} == {kind}


def test_two_ways_to_read_a_mask(tmp_path):
    cfg = scenes(tmp_path)
    cfg['train_dataloader']['dataset']['reduce_zero_label'] = False
    errors = found(cfg)
    assert sum(one.kind == 'reduce_zero_label' for one in errors) == 1
    assert {one.kind for one in errors} == {'reduce_zero_label', 'label beyond the classes'}


def test_quick_check_knows_the_files_of_all_metrics(tmp_path):
    cfg = folders(tmp_path)
    cfg['val_evaluator'] = [dict(type='Accuracy'), dict(type='CocoMetric', ann_file='no.json')]
    check_paths(Config(cfg), ('train_dataloader',))
    with pytest.raises(FileNotFoundError, match=r"'no.json' of val_evaluator.1 does not exist: .*val_evaluator.1.ann_"):
        check_paths(Config(cfg), ('train_dataloader', 'val_dataloader'))


def test_nothing_is_written(tmp_path):
    cfg = folders(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob('*'))
    inside = sorted(os.listdir())
    found(cfg)
    assert sorted(str(path) for path in tmp_path.rglob('*')) == before
    assert sorted(os.listdir()) == inside
