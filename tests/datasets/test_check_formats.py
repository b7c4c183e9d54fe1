"""Names, indices and boxes in annotation files of all formats but COCO's are compared with the classes of the config.

The library's own dataset says how many boxes are left, and with which label.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmpretrain.datasets.categories import FGVCAIRCRAFT_CATEGORIES
from PIL import Image

from mmsb.datasets.check import DataCheck, check_data
from mmsb.datasets.check.names import compare_with_checkpoint

LOAD = dict(type='LoadImageFromFile')
CLASSES = ('cat', 'dog')


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(path)


def config(scope: str, dataset: dict, classes: int = 2, split: str = 'train') -> Config:
    head = dict(mmdet='bbox_head', mmpretrain='head')[scope]
    loader = dict(dataset=dict(pipeline=[LOAD], **dataset))
    return Config({'default_scope': scope, 'model': {head: dict(num_classes=classes)}, f'{split}_dataloader': loader})


def found(cfg: Config) -> list:
    return [one for report in check_data(cfg) for one in report.findings]


def kinds(cfg: Config) -> set[tuple[str, str]]:
    return {(one.level, one.kind) for one in found(cfg)}


def labels_of(cfg: Config) -> list:
    """Return what the library itself makes of a training set: the labels of all boxes or images."""
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[]))
    samples = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [
        label
        for one in samples
        for label in (one.get('gt_label') or [box['bbox_label'] for box in one.get('instances', [])])
    ]


def thing(name: str, box=(10, 10, 30, 30), difficult: str = '<difficult>0</difficult>') -> str:
    corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), box or (), strict=False)
    inner = ''.join(f'<{key}>{value}</{key}>' for key, value in corners)
    return f'<object><name>{name}</name>{difficult}' + (f'<bndbox>{inner}</bndbox>' if box else '') + '</object>'


def xml(*things: str, width='100') -> str:
    size = f'<size><width>{width}</width><height>80</height></size>'
    return f'<annotation><folder>x</folder>{size}{"".join(things)}</annotation>'


def voc(root: Path, scope: str, texts: list[str], classes=CLASSES, split: str = 'train') -> Config:
    for number, text in enumerate(texts):
        picture(root / f'JPEGImages/{number}.jpg')
        (root / 'Annotations').mkdir(exist_ok=True)
        (root / f'Annotations/{number}.xml').write_text(text)
    listed = root / 'ImageSets/Main/train.txt'
    listed.parent.mkdir(parents=True)
    listed.write_text('\n'.join(map(str, range(len(texts)))) + '\n')
    dataset = dict(data_root=str(root), metainfo=dict(classes=classes))
    if scope == 'mmdet':
        dataset.update(type='VOCDataset', ann_file='ImageSets/Main/train.txt', data_prefix=dict(sub_data_root=''))
    else:
        dataset.update(type='VOC', split='train')
    return config(scope, dataset, len(classes), split)


GOOD = xml(thing('cat'), thing('dog'))


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_names_in_xml(scope, tmp_path):
    sound = voc(tmp_path / 'sound', scope, [GOOD, GOOD])
    assert found(sound) == []
    assert sorted(labels_of(sound)) == [0, 0, 1, 1]
    some = voc(tmp_path / 'some', scope, [xml(thing('Cat'), thing('cat'), thing('dog'), thing('cow'))] * 2)
    (one,) = found(some)
    assert sorted(labels_of(some)) == [0, 0, 1, 1]  # of 8, as the message says
    assert (one.level, one.kind) == ('warning', 'name without class')
    assert "'Cat' 2, 'cow' 2 are not among the classes: 4 of 8" in one.message
    assert "did you mean 'cat'?" in one.message
    for split in ('train', 'val', 'test'):
        cfg = voc(tmp_path / split, scope, [xml(thing('Cat'), thing('Dog'))], split=split)
        assert {kind for level, kind in kinds(cfg) if level == 'error'} == {'empty split'}


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_no_box_at_all(split, tmp_path):
    cfg = voc(tmp_path, 'mmdet', [xml()], split=split)
    assert kinds(cfg) == (set() if split == 'test' else {('error', 'empty split')})  # a test may have no labels


XML_FAULTS = {  # file, item, a part of the message; in MMDetection and MMPretrain
    'not XML': ('<annotation><obj', 'is not valid XML', True, True),
    'encoding': (f'<?xml version="1.0" encoding="gb2312"?>{GOOD}', 'is not valid XML', True, True),
    'no box': (xml(thing('cat', None)), 'bndbox/xmin must be a number, got None', True, False),
    'text': (xml(thing('cat', (1, 'x', 3, 4))), "bndbox/ymin must be a number, got 'x'", True, False),
    'not finite': (xml(thing('cat', (1, 2, 'inf', 4))), "bndbox/xmax must be a number, got 'inf'", True, False),
    'reversed': (xml(thing('cat', (30, 30, 10, 10))), 'corners in the wrong order', True, False),
    'difficult': (xml(thing('cat', difficult='<difficult>no</difficult>')), 'difficult must be 0 or 1', True, True),
    'not difficult': (xml(thing('cat', difficult='')), 'difficult must be 0 or 1, got None', False, True),
    'no width': (xml(thing('cat'), width='0'), "size/width must be a positive integer, got '0'", True, False),
    'no name': (xml('<object></object>'), 'has no name', True, True),
}


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
@pytest.mark.parametrize('name', XML_FAULTS)
def test_malformed_xml(name, scope, tmp_path):
    text, part, *wrong = XML_FAULTS[name]
    errors = [one for one in found(voc(tmp_path, scope, [GOOD, text])) if one.level == 'error']
    assert bool(errors) == wrong[scope == 'mmpretrain']
    if errors:
        assert errors[0].file.endswith('Annotations/1.xml')
        assert part in errors[0].message


def test_boxes_of_xml_and_the_image(tmp_path):
    boxes = [(150, 10, 160, 30), (90, 10, 110, 30), (10, 10, 10, 30), (1, 1, 100, 80)]
    cfg = voc(tmp_path, 'mmdet', [xml(*(thing('cat', box) for box in boxes), thing('dog'))])
    expected = [('box outside', 'box 0'), ('box partly outside', 'box 1'), ('empty box', 'box 2')]
    assert [(one.kind, one.item) for one in found(cfg)] == expected


@pytest.mark.parametrize('suffix', ['.png', '.JPG'])
def test_images_of_xml_with_another_suffix(suffix, tmp_path):
    cfg = voc(tmp_path, 'mmdet', [GOOD, GOOD])
    for path in tmp_path.glob('JPEGImages/*'):
        path.rename(path.with_suffix(suffix))
    errors = found(cfg)
    assert [one.kind for one in errors] == ['image with another suffix', 'missing image', 'missing image']
    assert f'2 of 2 images have another suffix ({suffix} 2)' in errors[0].message


def test_annotations_that_are_listed_but_missing(tmp_path):
    cfg = voc(tmp_path, 'mmdet', [GOOD, GOOD])
    (tmp_path / 'Annotations/1.xml').unlink()
    assert kinds(cfg) == {('error', 'missing annotations')}


def test_wider_face(tmp_path):
    for name, expected in (('face', set()), ('Face', {('error', 'empty split')})):
        root = tmp_path / name
        picture(root / 'train/x/0.jpg')
        (root / 'train/Annotations').mkdir()
        (root / 'train/Annotations/0.xml').write_text(xml(thing(name)))
        (root / 'train.txt').write_text('0\n')
        dataset = dict(
            type='WIDERFaceDataset', data_root=str(root), data_prefix=dict(img='train'), ann_file='train.txt'
        )
        assert kinds(config('mmdet', dataset, 1)) == expected


CROWDS = {  # tags, changes of the first box, what is found
    'sound': (['person', 'mask'], {}, set()),
    'beyond the image': (['person'], dict(fbox=[-20, -5, 300, 200]), set()),
    'some': (['person', 'Person'], {}, {('warning', 'name without class')}),
    'all': (['Person', 'mask'], {}, {('error', 'empty split')}),
    'text': (['person'], dict(fbox=[1, 2, 'x', 4]), {('error', 'malformed annotation')}),
    'negative': (['person'], dict(fbox=[50, 50, -20, 5]), {('error', 'reversed box')}),
    'lacking': (['person'], dict(vbox=None), {('error', 'malformed annotation')}),
}


@pytest.mark.parametrize('name', CROWDS)
def test_crowd_human(name, tmp_path):
    tags, change, expected = CROWDS[name]
    picture(tmp_path / 'train/0.jpg')
    boxes = [dict(tag=tag, fbox=[10, 10, 20, 20], hbox=[1, 1, 2, 2], vbox=[1, 1, 3, 3], extra={}) for tag in tags]
    boxes[0].update(change)
    (tmp_path / 'train.odgt').write_text(json.dumps(dict(ID='0', gtboxes=boxes)) + '\n')
    (tmp_path / 'id_hw_train.json').write_text(json.dumps({'0': [80, 100]}))
    dataset = dict(type='CrowdHumanDataset', data_root=str(tmp_path), data_prefix=dict(img='train'))
    assert kinds(config('mmdet', dict(dataset, ann_file='train.odgt'), 1)) == expected


@pytest.mark.parametrize(
    ('mids', 'stated', 'expected'),
    [
        (['/m/1', '/m/2'], None, set()),
        (['/m/1', '/m/9'], None, {('error', 'name without class')}),
        (['/m/1'], ('Dog', 'Cat'), {('error', 'ignored classes')}),
    ],
)
def test_open_images(mids, stated, expected, tmp_path):
    picture(tmp_path / 'train/0.jpg')
    (tmp_path / 'labels.csv').write_text('/m/1,Cat\n/m/2,Dog\n')
    (tmp_path / 'tree.json').write_text(json.dumps(dict(LabelName='/m/0', Subcategory=[])))
    lines = ['head', *(f'0,x,{mid},1,0.1,0.5,0.1,0.5,0,0,0,0,0' for mid in mids)]
    (tmp_path / 'train.csv').write_text('\n'.join(lines) + '\n')
    (tmp_path / 'train.pkl').write_bytes(pickle.dumps([dict(filename='0.jpg', ori_shape=(80, 100, 3))]))
    files = dict(label_file='labels.csv', meta_file='train.pkl', hierarchy_file='tree.json')
    dataset = dict(type='OpenImagesDataset', data_root=str(tmp_path), data_prefix=dict(img='train'))
    dataset.update({key: str(tmp_path / name) for key, name in files.items()}, ann_file='train.csv')
    if stated:
        dataset['metainfo'] = dict(classes=stated)
    assert kinds(config('mmdet', dataset)) == expected


@pytest.mark.parametrize(('labels', 'bad'), [([0, 1], False), ([1, 2], True), (['cat'], True)])
def test_odvg(labels, bad, tmp_path):
    picture(tmp_path / 'train/0.jpg')
    (tmp_path / 'map.json').write_text(json.dumps({'0': 'cat', '1': 'dog'}))
    boxes = [dict(bbox=[1, 1, 20, 20], label=label, category='x') for label in labels]
    line = dict(filename='0.jpg', height=80, width=100, detection=dict(instances=boxes))
    (tmp_path / 'train.jsonl').write_text(json.dumps(line) + '\n')
    dataset = dict(type='ODVGDataset', data_root=str(tmp_path), data_prefix=dict(img='train'), return_classes=True)
    dataset.update(ann_file='train.jsonl', label_map_file='map.json')
    assert kinds(config('mmdet', dataset)) == ({('error', 'name without class')} if bad else set())


@pytest.mark.parametrize(('names', 'bad'), [(('cat', 'dog'), False), (('dog', 'cat'), True)])
def test_videos_number_categories_in_the_order_of_the_file(names, bad, tmp_path):
    picture(tmp_path / 'train/v/0.jpg')
    boxes = [
        dict(id=i, image_id=1, category_id=i, bbox=[1, 1, 20, 20], area=400, iscrowd=0, instance_id=i) for i in (1, 2)
    ]
    content = dict(
        images=[dict(id=1, file_name='v/0.jpg', width=100, height=80, video_id=1, frame_id=0)],
        categories=[dict(id=i, name=name) for i, name in enumerate(names, start=1)],
        annotations=boxes,
    )
    (tmp_path / 'train.json').write_text(json.dumps(content))
    dataset = dict(type='BaseVideoDataset', data_root=str(tmp_path), data_prefix=dict(img_path='train'))
    dataset.update(ann_file='train.json', metainfo=dict(classes=CLASSES))
    assert kinds(config('mmdet', dataset)) == ({('error', 'order of the classes')} if bad else set())


MULTI = {  # classes of the file, of the config, labels, what is found
    'sound': (['a', 'b'], None, [[0], [0, 1]], set()),
    'other case': (['a', 'b'], ['A', 'B'], [[0], [0, 1]], set()),
    'order': (['a', 'b'], ['b', 'a'], [[0], [0, 1]], {('error', 'order of the classes')}),
    'other names': (['a', 'b'], ['x', 'y'], [[0], [0, 1]], {('error', 'order of the classes')}),
    'too many': (['a', 'b', 'c'], ['a', 'b'], [[0], [0, 1]], {('error', 'number of classes')}),
    'beyond': (['a', 'b'], None, [[0], [0, 2]], {('error', 'label beyond the classes')}),
    'from 1': (['a', 'b'], None, [[1], [1, 2]], {('error', 'label beyond the classes')}),
    'words': (['a', 'b'], None, [['a'], ['b']], {('error', 'malformed label')}),
    'none': (['a', 'b'], None, [[], []], {('error', 'empty split')}),
}


@pytest.mark.parametrize('key', ['classes', 'categories'])
@pytest.mark.parametrize('name', MULTI)
def test_classes_in_an_openmmlab_file(name, key, tmp_path):
    theirs, ours, labels, expected = MULTI[name]
    meta = [dict(id=i, category_name=one) for i, one in enumerate(theirs)][::-1] if key == 'categories' else theirs
    for number in range(len(labels)):
        picture(tmp_path / f'train/{number}.png')
    samples = [dict(img_path=f'{number}.png', gt_label=label) for number, label in enumerate(labels)]
    (tmp_path / 'train.json').write_text(json.dumps(dict(metainfo={key: meta}, data_list=samples)))
    dataset = dict(type='MultiLabelDataset', data_root=str(tmp_path), data_prefix='train', ann_file='train.json')
    if ours:
        dataset['metainfo'] = dict(classes=ours)
    assert kinds(config('mmpretrain', dataset)) == expected


def test_several_tasks_have_no_list_of_classes(tmp_path):
    picture(tmp_path / 'train/0.png')
    content = dict(metainfo=dict(tasks=['a']), data_list=[dict(img_path='train/0.png', gt_label=dict(a=1))])
    (tmp_path / 'train.json').write_text(json.dumps(content))
    dataset = dict(type='MultiTaskDataset', data_root=str(tmp_path), ann_file='train.json')
    cfg = config('mmpretrain', dataset)
    cfg.model.head = dict(type='MultiTaskHead', task_heads=dict(a=dict(num_classes=2)))
    assert found(cfg) == []
    (tmp_path / 'train/0.png').unlink()
    assert kinds(cfg) == {('error', 'missing image')}


def test_a_dataset_with_an_order_of_its_own(tmp_path):
    names = list(FGVCAIRCRAFT_CATEGORIES)
    for number in range(2):
        picture(tmp_path / f'data/images/{number}.jpg')
    (tmp_path / 'data/images_variant_train.txt').write_text(f'0 {names[0]}\n1 {names[1]}\n')
    dataset = dict(type='FGVCAircraft', data_root=str(tmp_path), split='train')
    few = ('warning', 'class that never occurs')
    assert kinds(config('mmpretrain', dataset, 100)) == {few}
    names[:2] = names[1::-1]
    cfg = config('mmpretrain', dict(dataset, metainfo=dict(classes=names)), 100)
    assert kinds(cfg) == {('error', 'order of the classes')}


STATED = {  # the classes of a config, what is found
    'space': (
        dict(classes=('cat ', 'dog')),
        {('warning', kind) for kind in ('space in a class name', 'name without class', 'class that never occurs')},
    ),
    'twice': (dict(classes=('cat', 'dog', 'cat')), {('error', 'class twice')}),
    'old key': (dict(CLASSES=CLASSES), {('error', 'ignored classes'), ('error', 'number of classes')}),
    'file': (dict(classes='names.txt'), set()),
    'empty line': (dict(classes='blank.txt'), {('error', 'empty class name'), ('error', 'number of classes')}),
}


@pytest.mark.parametrize('name', STATED)
def test_classes_of_a_config(name, tmp_path, monkeypatch):
    meta, expected = STATED[name]
    monkeypatch.chdir(tmp_path)
    Path('names.txt').write_text('cat\ndog\n')
    Path('blank.txt').write_text('cat\ndog\n\n')
    cfg = voc(tmp_path / 'voc', 'mmdet', [GOOD, GOOD], CLASSES + CLASSES[:1] if name == 'twice' else CLASSES)
    cfg.train_dataloader.dataset.metainfo = meta
    assert kinds(cfg) == expected


LEARNT = {  # classes of a checkpoint and of the config, what is found
    'same': (CLASSES, CLASSES, []),
    'case': (('Cat', 'DOG'), CLASSES, []),
    'order': (('dog', 'cat'), CLASSES, [('error', 'order of the classes')]),
    'shifted': (('background', 'cat', 'dog'), CLASSES, [('error', 'order of the classes')]),
    'other names': (('x', 'y'), CLASSES, [('warning', 'classes of the checkpoint')]),
    'fewer': (('cat', 'dog', 'cow'), CLASSES, [('warning', 'classes of the checkpoint')]),
    'unknown': (CLASSES, None, []),
}


@pytest.mark.parametrize('name', LEARNT)
def test_classes_of_a_checkpoint(name, tmp_path):
    learnt, classes, expected = LEARNT[name]
    assert [(one.level, one.kind) for one in compare_with_checkpoint('key', classes, 'a.pth', learnt)] == expected
    if classes:
        cfg = voc(tmp_path, 'mmdet', [GOOD], classes)
        findings = DataCheck(cfg, ('a.pth', learnt)).datasets('train_dataloader').report.findings
        assert [(one.level, one.kind) for one in findings] == expected
