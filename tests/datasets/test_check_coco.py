"""Faults in COCO files are errors before a figure is printed: ids, masks, numbers, and the truth of a metric."""

import contextlib
import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from pycocotools import mask as pycoco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmsb.datasets.check import DataCheck, coco_masks

WIDTH_PX, HEIGHT_PX = 40, 30
NAMES = ('cat', 'dog')
BITMAP = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8, order='F')
BITMAP[5:13, 5:15] = 1
POLYGON = [5, 5, 15, 5, 15, 13, 5, 13]
MASKS = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]


def rle(bitmap: np.ndarray = BITMAP) -> dict:
    code = pycoco.encode(np.asfortranarray(bitmap))
    return dict(size=list(map(int, code['size'])), counts=code['counts'].decode())


def truth(images: int = 3, first: int = 1) -> dict:
    """Return sound annotations: a cat and a dog in each image, with ids from `first`."""
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=WIDTH_PX, height=HEIGHT_PX) for i in range(1, images + 1)],
        annotations=[
            dict(id=first + 2 * i + j, image_id=i + 1, category_id=7 + j, bbox=[5 + i, 5, 10, 8], area=80, iscrowd=0)
            | dict(segmentation=[POLYGON])
            for i in range(images)
            for j in range(2)
        ],
        categories=[dict(id=7 + j, name=name) for j, name in enumerate(NAMES)],
    )


class Run:
    """A config over annotation files, whose images are empty files; `found` checks what a rehearsal checks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = dict(train=truth(), val=truth())
        self.cfg = dict(default_scope='mmdet', model=dict(), val_evaluator=dict(type='CocoMetric', ann_file='val.json'))
        for split in self.files:
            (root / split).mkdir()
            leaf = dict(type='CocoDataset', data_root=str(root), data_prefix=dict(img=split), ann_file=f'{split}.json')
            leaf.update(metainfo=dict(classes=NAMES), pipeline=MASKS[:1], test_mode=split == 'val')
            self.cfg[f'{split}_dataloader'] = dict(dataset=leaf)

    def dataset(self, split: str) -> dict:
        return self.cfg[f'{split}_dataloader']['dataset']

    @property
    def metric(self) -> dict:
        return self.cfg['val_evaluator']

    def found(self) -> list:
        for name, content in self.files.items():
            (self.root / f'{name}.json').write_text(json.dumps(content))
            for image, split in itertools.product(content.get('images') or [], ('train', 'val')):
                if isinstance(image, dict) and isinstance(image.get('file_name'), str):
                    path = self.root / split / image['file_name']
                    path.parent.mkdir(exist_ok=True)
                    path.touch()
        metric = self.metric.get('ann_file')
        if metric:
            self.metric['ann_file'] = str(self.root / metric)
        check = DataCheck(Config(self.cfg))
        with contextlib.redirect_stdout(io.StringIO()):
            findings = check.datasets('train_dataloader').report.findings
            split = check.datasets('val_dataloader')
            check.metrics('val_dataloader', split)
        return findings + split.report.findings

    def errors(self) -> set:
        return {(one.kind, Path(one.file).name, one.item) for one in self.found() if one.level == 'error'}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def all_of(content: dict, key: str, change) -> None:
    for annotation in content['annotations']:
        annotation[key] = change(annotation[key])


# Sound: silent.


def elsewhere(run: Run) -> None:
    """The metric's file has the same truth with other places, ids, order and rounding."""
    other = truth(first=500)
    other['annotations'].reverse()
    other['categories'] = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    for image in other['images']:
        image['file_name'] = 'val/' + image['file_name']
    all_of(other, 'category_id', lambda number: number - 6)
    all_of(other, 'bbox', lambda box: [value + 0.4 for value in box])
    run.files['other'] = other
    run.metric['ann_file'] = 'other.json'


def test_dev(run: Run) -> None:
    """The dataset's file has no truth, as COCO's test-dev; the metric's has."""
    run.files['dev'] = dict(truth(), annotations=[])
    run.dataset('val')['ann_file'] = 'dev.json'


def several(run: Run, first: int = 4) -> None:
    """Two datasets; the image ids of the second start at `first`."""
    second = truth(first=100)
    for image in second['images']:
        image['id'] += first - 1
    all_of(second, 'image_id', lambda number: number + first - 1)
    run.files['second'] = second
    leaf = run.dataset('val')
    run.cfg['val_dataloader']['dataset'] = dict(
        type='ConcatDataset', datasets=[leaf, dict(leaf, ann_file='second.json')]
    )
    run.cfg['val_evaluator'] = dict(
        type='MultiDatasetsEvaluator',
        dataset_prefixes=['a', 'b'],
        metrics=[dict(type='CocoMetric', ann_file=str(run.root / f'{name}.json')) for name in ('val', 'second')],
    )


def other_numbers(run: Run) -> None:
    run.files['val']['categories'] = [dict(id=1, name='cat'), dict(id=5, name='dog')]
    all_of(run.files['val'], 'category_id', {7: 1, 8: 5}.get)


def masks(run: Run) -> None:
    """Polygons, both run-length codes and a crowd, read by the pipeline and the metric."""
    run.metric['metric'] = ['bbox', 'segm']
    counts = [0, *np.diff(np.flatnonzero(np.diff(BITMAP.ravel('F'), prepend=2, append=2))).tolist()]
    plain = dict(size=[HEIGHT_PX, WIDTH_PX], counts=counts if BITMAP[0, 0] else counts[1:])
    for split in ('train', 'val'):
        run.dataset(split)['pipeline'] = MASKS
        for annotation, mask in zip(run.files[split]['annotations'], ([POLYGON] * 2, rle(), plain), strict=False):
            annotation['segmentation'] = mask
        run.files[split]['annotations'][1]['iscrowd'] = 1


SOUND = {
    'as it is': lambda run: None,
    'id 0 in training alone': lambda run: run.files.update(train=truth(first=0)),
    'the same truth elsewhere': elsewhere,
    'a dataset without truth': test_dev,
    'no file of the metric': lambda run: run.metric.pop('ann_file'),
    'datasets with a metric each': lambda run: several(run, first=1),
    'other category ids in validation': other_numbers,
    'masks': masks,
    'ids as text throughout': lambda run: [
        all_of(run.files['val'], 'image_id', str),
        [image.update(id=str(image['id'])) for image in run.files['val']['images']],
    ],
    'id 0 of a category that is no class': lambda run: [
        run.files['val']['categories'].append(dict(id=9, name='cow')),
        run.files['val']['annotations'].append(dict(run.files['val']['annotations'][0], id=0, category_id=9)),
    ],
    'an image without objects left out': lambda run: [
        run.files.update(more=dict(truth(), images=truth(images=4)['images'])),
        run.metric.update(ann_file='more.json'),
    ],
    'results to be sent in': lambda run: [
        run.files['val'].update(annotations=[]),
        run.metric.update(format_only=True, outfile_prefix='out'),
    ],
    'a metric that is not of COCO': lambda run: run.cfg.update(val_evaluator=dict(type='DumpResults')),
}


@pytest.mark.parametrize('name', SOUND)
def test_sound_files_are_silent(name, run):
    SOUND[name](run)
    levels = ('error',) if 'no class' in name else ('error', 'warning')  # a category that is no class is a warning
    assert [str(one) for one in run.found() if one.level in levels] == []


# Ids.


def precision(content: dict, folder: Path) -> float:
    """Return the AP of predictions that are exactly the truth, by pycocotools itself."""
    path = folder / 'truth.json'
    path.write_text(json.dumps(content))
    keys = ('image_id', 'category_id', 'bbox')
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(path))
        results = loaded.loadRes([{key: one[key] for key in keys} | dict(score=0.9) for one in content['annotations']])
        evaluation = COCOeval(loaded, results, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize('zero', [0, '0', '0.0'])
def test_annotation_id_0_lowers_the_precision_and_is_an_error_in_the_file_of_a_metric(zero, run):
    for number in (zero, 1000):
        run.files['val']['annotations'][0]['id'] = number
        perfect = precision(run.files['val'], run.root) == pytest.approx(1)
        wanted = set() if perfect else {('annotation id', 'val.json', f'annotation id {number}')}
        assert perfect == (number == 1000)
        run.metric['ann_file'] = 'val.json'
        assert run.errors() == wanted


def test_ids_that_the_evaluation_cannot_store(run, tmp_path):
    run.files['val']['annotations'][0]['id'] = 'first'
    with pytest.raises(ValueError, match='could not convert'):
        precision(run.files['val'], tmp_path)
    assert run.errors() == {('annotation id', 'val.json', 'annotation id first')}


@pytest.mark.parametrize('number', ['one', 2**63 + 1])
def test_ids_that_numpy_makes_others_of(number, run):
    assert number not in np.unique([1, number]).tolist() or 1 not in np.unique([1, number]).tolist()
    run.files['val']['images'][0]['id'] = number
    for annotation in run.files['val']['annotations'][:2]:
        annotation['image_id'] = number
    assert ('id of another type', 'val.json', '') in run.errors()


@pytest.mark.parametrize('kind', [str, lambda number: f'00{number}'])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_image_ids_as_text_in_the_annotations(split, kind, run):
    all_of(run.files[split], 'image_id', kind)
    assert ('id of another type', f'{split}.json', 'annotation id 1') in run.errors()


def test_category_ids_as_text_in_the_annotations(run):
    all_of(run.files['val'], 'category_id', str)
    found = next(one for one in run.found() if one.level == 'error')
    assert (found.kind, found.item) == ('unknown category_id', 'annotation id 1')
    assert "'7' is not the id of any category, but 7 is: write both as numbers" in found.message


def test_image_ids_as_text_in_the_file_of_the_metric(run):
    other = truth()
    all_of(other, 'image_id', str)
    for image in other['images']:
        image['id'] = str(image['id'])
    run.files['other'] = other
    run.metric['ann_file'] = 'other.json'
    found = [one for one in run.found() if one.level == 'error']
    assert {one.item for one in found} >= {f'image id {i}' for i in (1, 2, 3)}
    assert "but '1' is" in found[0].message


@pytest.mark.parametrize('value', [True, 1.0, None, [1]])
def test_ids_of_other_kinds(value, run):
    run.files['val']['annotations'][1]['image_id'] = value
    assert run.errors() == {('malformed entry', 'val.json', 'annotation id 2')}


# Which file a metric reads.


def another_file(run: Run, **changes) -> None:
    run.files['other'] = truth() | changes
    run.metric['ann_file'] = 'other.json'


def moved(run: Run, pixels: int) -> None:
    another_file(run)
    run.files['other']['annotations'][4]['bbox'] = [5 + pixels, 5, 10, 8]


OTHER_TRUTH = {
    'boxes of another image': (lambda run: moved(run, 9), 'image id 3'),
    'other file name': (
        lambda run: another_file(run, images=[dict(one, file_name='x.jpg') for one in truth()['images']]),
        'image id 1',
    ),
    'other size': (
        lambda run: another_file(run, images=[dict(one, width=41) for one in truth()['images']]),
        'image id 1',
    ),
    'an object less': (lambda run: another_file(run, annotations=truth()['annotations'][:-1]), 'image id 3'),
    'another class': (
        lambda run: another_file(run, categories=[dict(id=7, name='cat'), dict(id=8, name='cow')]),
        'image id 1',
    ),
    'image not there': (lambda run: another_file(run, **truth(images=2)), 'image id 3'),
}


@pytest.mark.parametrize('name', OTHER_TRUTH)
def test_a_metric_that_reads_another_file(name, run):
    plant, item = OTHER_TRUTH[name]
    plant(run)
    assert ('metric of other images', 'other.json', item) in run.errors()


class OwnMetric(CocoMetric):
    """A user's metric."""


def test_the_metric_is_known_by_its_class(run):
    moved(run, 9)
    run.metric['type'] = OwnMetric
    assert ('metric of other images', 'other.json', 'image id 3') in run.errors()


def test_fewer_images_than_the_metric_reads(run):
    run.dataset('val')['indices'] = 2
    (found,) = [one for one in run.found() if one.level == 'error']
    assert (found.kind, found.item) == ('metric of more images', 'image id 3')
    assert 'remove val_dataloader.dataset.indices' in found.message


def test_a_metric_that_reads_more_images(run):
    run.files['more'] = truth(images=5)
    run.metric['ann_file'] = 'more.json'
    assert run.errors() == {('metric of more images', 'more.json', 'image id 4')}


def test_several_datasets_under_one_metric(run):
    several(run, first=1)
    run.cfg['val_evaluator'] = dict(type='CocoMetric', ann_file='val.json')
    assert ('shared image ids', 'val_dataloader.dataset.datasets.0', 'image id 1') in run.errors()


def test_the_second_of_several_datasets_has_the_file_of_the_first(run):
    several(run)
    run.cfg['val_evaluator']['metrics'][1]['ann_file'] = str(run.root / 'val.json')
    assert ('metric of other images', 'val.json', 'image id 4') in run.errors()


def test_the_file_of_the_metric_has_another_order(run):
    another_file(run, categories=truth()['categories'][::-1])
    assert ('order of the classes', 'other.json', 'category id 8') in run.errors()


# Empty splits, and classes.


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize(
    'empty',
    [dict(annotations=[]), dict(images=[]), dict(categories=[dict(id=7, name='chat'), dict(id=8, name='chien')])],
)
def test_empty_split(empty, split, run):
    run.files[split].update(empty)
    assert 'empty split' in {kind for kind, _, _ in run.errors()}


def test_an_empty_split_names_its_classes(run):
    run.files['train'].update(images=[], annotations=[])
    (message,) = (one.message for one in run.found() if one.kind == 'empty split')
    assert message.endswith(f': the classes are {", ".join(NAMES)}')


def test_empty_split_whose_truth_is_in_the_samples(run):
    run.metric.pop('ann_file')
    run.files['val']['annotations'] = []
    assert run.errors() == {('empty split', 'val_evaluator', '')}


def test_class_that_no_box_has(run):
    for annotation in run.files['train']['annotations']:
        annotation['category_id'] = 7
    (found,) = run.found()
    assert str(found) == "warning: train_dataloader.dataset: class 'dog' of 2 occurs in no box (cat 6)"


def test_class_that_only_the_second_of_two_files_has(run):
    run.files['dogs'] = truth()
    for name, number in dict(train=7, dogs=8).items():
        for annotation in run.files[name]['annotations']:
            annotation['category_id'] = number
    leaf = run.dataset('train')
    run.cfg['train_dataloader']['dataset'] = dict(
        type='ConcatDataset', datasets=[leaf, dict(leaf, ann_file='dogs.json')]
    )
    assert run.found() == []


def test_two_categories_of_one_name(run):
    run.files['train']['categories'].insert(1, dict(id=9, name='cat'))
    assert run.errors() == {('duplicate category name', 'train.json', 'category id 9')}


def test_a_file_that_two_images_have(run):
    run.files['train']['images'][2]['file_name'] = '1.jpg'
    (found,) = run.found()
    assert (found.level, found.kind, found.item) == ('warning', 'image listed twice', 'image id 3')


# Numbers.

NOT_NUMBERS = {
    'images': dict(width='image id 1', height='image id 1', id='images[0]', file_name='image id 1'),
    'annotations': dict.fromkeys(('bbox', 'area', 'iscrowd', 'image_id', 'category_id'), 'annotation id 1')
    | dict(id='annotations[0]'),
    'categories': dict(id='categories[0]', name='category id 7'),
}


@pytest.mark.parametrize('split', ['train', 'val', 'metric'])
@pytest.mark.parametrize(('section', 'key'), [(section, key) for section, keys in NOT_NUMBERS.items() for key in keys])
def test_null(section, key, split, run):
    if split == 'metric':
        another_file(run)
    name = 'other' if split == 'metric' else split
    run.files[name][section][0][key] = None
    unread = (
        split == 'metric' and NOT_NUMBERS[section][key] == 'image id 1'
    )  # of images, a metric of boxes reads the id
    errors = {(file, item) for _, file, item in run.errors()}
    assert errors == set() if unread else (f'{name}.json', NOT_NUMBERS[section][key]) in errors


@pytest.mark.parametrize('box', [[], [5, 5, None, 8], ['5', 5, 9, 8], [5, 5, 9, 10**400], 'all', {}])
def test_box_of_other_things(box, run):
    run.files['train']['annotations'][0]['bbox'] = box
    assert {item for _, _, item in run.errors()} == {'annotation id 1'}


@pytest.mark.parametrize(
    ('section', 'key', 'value'), [('categories', 'name', ['cat']), ('annotations', 'bbox', [5, 5, 9, 10**400])]
)
def test_what_python_cannot_hash_or_store_in_the_file_of_a_metric(section, key, value, run):
    another_file(run)
    run.files['other'][section][0][key] = value
    assert ('other.json', NOT_NUMBERS[section][key]) in {(file, item) for _, file, item in run.errors()}


@pytest.mark.parametrize('section', ['images', 'annotations', 'categories'])
def test_list_that_is_null(section, run):
    run.files['val'][section] = None
    assert ('missing key', 'val.json', '') in run.errors()


@pytest.mark.parametrize('side', ['40', 10**400, -40, float('nan')])
def test_size_of_an_image_whose_masks_are_read(side, run):
    run.dataset('train')['pipeline'] = MASKS
    run.files['train']['images'][0]['width'] = side
    assert run.errors() == {('image of another size', 'train.json', 'image id 1')}


def test_crowd_as_text(run):
    run.files['train']['annotations'][0]['iscrowd'] = '0'  # true, for MMDetection
    assert run.errors() == {('malformed entry', 'train.json', 'annotation id 1')}


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]], 'have the area of [x1, y1, x2, y2]'),
        (lambda box: np.divide(box, [WIDTH_PX, HEIGHT_PX] * 2).tolist(), 'lie between 0 and 1'),
    ],
)
def test_format_of_few_boxes(change, words, run):
    all_of(run.files['train'], 'bbox', change)
    run.files['train']['images'][0]['width'] = 100
    found = next(one for one in run.found() if one.level == 'error')
    assert (found.kind, found.item) == ('box format', '')
    assert words in found.message


# Masks.


def code(**changes) -> dict:
    return rle() | changes


MALFORMED = {
    'swapped size': code(size=[WIDTH_PX, HEIGHT_PX]),
    'another size': code(size=[HEIGHT_PX, WIDTH_PX + 1]),
    'no size': dict(counts=rle()['counts']),
    'size of three': code(size=[1, 2, 3]),
    'mask of another image': code(counts=rle(np.ones((9, 9), np.uint8))['counts']),
    'cut off': code(counts=rle()['counts'][:-1]),
    'garbage': code(counts='\x01\x02zzz~~~'),
    'no end': code(counts='oooooooooooooo'),
    'negative length': code(counts='O'),
    'no code': code(counts=''),
    'null code': code(counts=None),
    'too few runs': code(counts=[5, 5]),
    'too many runs': code(counts=[10**9, 10**9]),
    'negative run': code(counts=[-5, HEIGHT_PX * WIDTH_PX + 5]),
    'run as text': code(counts=['1', '2']),
    'empty': [],
    'null': None,
    'no polygon': [[]],
    'two points': [[5, 5, 15, 13]],
    'odd': [[5, 5, 15, 5, 15, 13, 5]],
    'null coordinate': [[5, 5, 15, 5, None, 13]],
    'not a number': [[5, 5, 15, 5, float('nan'), 13]],
    'infinite': [[5, 5, 15, 5, float('inf'), 13]],
    'far away': [[5, 5, 15, 5, 1e12, 13]],
    'text': [['5', '5', '15', '5', '15', '13']],
    'points as pairs': [[[5, 5], [15, 5], [15, 13], [5, 13], [5, 5], [5, 5]]],
    'flat': POLYGON,
    'code in a list': [rle()],
    'in words': 'polygon',
    'a number': 7,
    'true': True,
}


@pytest.mark.parametrize('where', ['pipeline', 'metric'])
@pytest.mark.parametrize('name', MALFORMED)
def test_malformed_mask(name, where, run):
    split = 'train' if where == 'pipeline' else 'val'
    run.files[split]['annotations'][2]['segmentation'] = MALFORMED[name]
    if where == 'pipeline':
        run.dataset('train')['pipeline'] = MASKS
    else:
        run.metric['metric'] = ['bbox', 'segm']
    assert {(file, item) for _, file, item in run.errors()} == {(f'{split}.json', 'annotation id 3')}


def test_masks_that_nothing_reads(run):
    for annotation, mask in zip(run.files['train']['annotations'], MALFORMED.values(), strict=False):
        annotation['segmentation'] = mask
    assert run.found() == []


def test_mask_of_an_object_that_is_left_out(run):
    """Annotation tools leave objects of no area, and of polygons with two points, where somebody clicked."""
    run.dataset('train')['pipeline'] = MASKS
    run.files['train']['annotations'][0].update(bbox=[5, 5, 0, 0], area=0, segmentation=[[5, 5, 5, 5]])
    assert [(one.level, one.kind) for one in run.found()] == [('warning', 'empty box')]


def test_one_polygon_of_several(run):
    for split in ('train', 'val'):
        run.files[split]['annotations'][0]['segmentation'] = [[5, 5, 15, 13], POLYGON]
    run.dataset('train')['pipeline'] = run.dataset('val')['pipeline'] = MASKS
    run.metric['metric'] = 'segm'
    found = [(one.level, one.kind, Path(one.file).name) for one in run.found()]
    assert found == [
        ('warning', 'polygon dropped', 'train.json'),
        ('warning', 'polygon dropped', 'val.json'),
        ('error', 'malformed mask', 'val.json'),
    ]


def test_polygons_outside_the_image(run):
    run.dataset('train')['pipeline'] = MASKS
    outside = [x + WIDTH_PX if i % 2 == 0 else x for i, x in enumerate(POLYGON)]
    run.files['train']['annotations'][0]['segmentation'] = [outside, outside]
    run.files['train']['annotations'][1]['segmentation'] = [outside, POLYGON]
    assert [(one.level, one.kind, one.item) for one in run.found()] == [('warning', 'mask outside', 'annotation id 1')]


def test_codes_where_polygons_are_read(run):
    steps = [MASKS[0], dict(MASKS[1], poly2mask=False)]
    run.dataset('train')['pipeline'] = steps
    run.files['train']['annotations'][0]['segmentation'] = rle()
    run.files['train']['annotations'][1].update(segmentation=rle(), iscrowd=1)
    assert ('warning', 'ignored mask', 'annotation id 1') in {(one.level, one.kind, one.item) for one in run.found()}


def test_decoder_against_pycocotools():
    """Sums of runs must be the sizes, and the runs of codes in one call must not mix."""
    random = np.random.default_rng(0)
    bitmaps = [
        random.random((int(height), int(width))) < share
        for height, width, share in zip(*random.integers(1, 90, (2, 200)), random.random(200), strict=True)
    ]
    texts = [pycoco.encode(np.asfortranarray(one, np.uint8))['counts'].decode() for one in bitmaps]
    assert all(map(coco_masks.RLE_TEXT.fullmatch, texts))
    lowest, totals = coco_masks.decode(texts)
    assert totals.tolist() == [one.size for one in bitmaps]
    edges = [np.flatnonzero(np.diff(one.ravel('F').astype(int), prepend=0)) for one in bitmaps]
    runs = [np.diff([0, *edge, one.size]) for edge, one in zip(edges, bitmaps, strict=True)]
    assert lowest.tolist() == [one.min() for one in runs]


def test_both_splits_are_checked_when_a_file_is_linked(run):
    """A link to the dataset's file is the same file."""
    run.found()
    (run.root / 'link.json').symlink_to(run.root / 'val.json')
    run.metric['ann_file'] = 'link.json'
    assert run.found() == []
    shutil.copy(run.root / 'val.json', run.root / 'copy.json')
    run.metric['ann_file'] = 'copy.json'
    assert run.found() == []
