"""Check one dataset of a config: its files, samples, classes and labels. Its images are checked separately."""

import contextlib
import inspect
import io
import os
import re
from collections import Counter
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmsb.datasets import paths
from mmsb.options import one_line

from . import coco, coco_masks
from .findings import Finding, error, warning
from .samples import SampleCheck

HEADS = ('head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')
IGNORED = 255  # default of mmseg's losses and metrics
UNUSABLE = 'unusable dataset'  # it can't be built or listed: often a mistake in the config
FLAW = (AssertionError, AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)


class DatasetCheck:
    """One dataset of a config. `look` checks everything that needs no image, and lists the samples.

    Args:
        cfg: the final config.
        key: key of the dataset in it.
        leaf: the dataset's config.
        training: whether its split is trained on.
        dataset: the dataset, if it has been built; else `look` builds it, without its pipeline.
    """

    def __init__(self, cfg: Config, key: str, leaf: dict, *, training: bool, dataset: object = None) -> None:
        self.cfg, self.key, self.leaf, self.training = cfg, key, leaf, training
        self._built = dataset
        self.samples: list[dict] = []
        self.classes: tuple | None = None
        self.reader: SampleCheck | None = None
        self.path: str | None = None  # of a COCO file that is only measured, and what it holds: metrics read it too
        self.content: dict | None = None

    def look(self) -> Iterator[Finding]:
        missing = list(self._missing())
        yield from missing
        if any(found.kind != 'missing image folder' for found in missing):
            return
        dataset, downloads = self._built, False
        if dataset is None:
            try:
                dataset, downloads = self._build()
            except FLAW as failure:
                yield self._unusable(failure)
                return
        bases = {base.__name__ for base in type(dataset).__mro__}
        if missing and 'CocoDataset' not in bases:
            return
        coco_file = 'CocoDataset' in bases and 'CocoPanopticDataset' not in bases and paths.annotation_file(self.leaf)
        content, found = None, list(self._check_lines(bases))
        if coco_file:
            content, found = self._check_coco(coco_file, dataset.metainfo.get('classes'), bases)
            if not self.training:
                self.path, self.content = coco_file, content
        yield from found
        wrong = any(one.level == 'error' for one in found)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
                dataset.full_init()
        except FLAW as failure:
            if downloads:
                text = 'is missing or damaged: the run downloads it when it starts'
                yield warning('missing data', str(self.leaf.get('data_root')), '', text)
            elif not wrong:
                yield self._unusable(failure)
            elif content and not missing:
                self.samples = list(coco.samples(content, dataset.data_prefix['img']))
                self._make_reader(dataset, masks=False)
            return
        samples = getattr(dataset, 'data_list', None) or [dataset.get_data_info(i) for i in range(len(dataset))]
        self.samples = [] if missing else samples
        self.classes = dataset.metainfo.get('classes')
        if not samples:
            text = f'has no samples left (data_root {self.leaf.get("data_root")!r}, '
            text += f'data_prefix {dict(dataset.data_prefix)}, ann_file {self.leaf.get("ann_file", "")!r})'
            yield error('empty split', self.key, '', text + self._hint(dataset))
        elif self.training and coco_file and not any(sample.get('instances') for sample in samples):
            yield error('empty split', self.key, '', 'has no boxes left to learn from')
        if coco_file and content and hasattr(dataset, 'cat_ids') and isinstance(self.classes, (list, tuple)):
            args = (coco_file, content, self.classes, list(dataset.cat_ids))
            yield from coco.check_classes(*args, training=self.training)
        yield from self._check_folders(dataset)
        yield from self._check_heads('return_classes' in self.leaf)
        self._make_reader(dataset, masks='BaseSegDataset' in bases)
        yield from self.reader.setting

    def _missing(self) -> Iterator[Finding]:
        for kind, missing in (
            ('missing folder', paths.missing_folder(self.leaf, self.key)),
            ('missing annotations', paths.missing_annotations(self.leaf, self.key)),
        ):
            if missing:
                yield error(kind, missing[0], '', f'does not exist: {missing[1]}')
                return
        for name, folder in paths.image_folders(self.leaf).items():
            if not os.path.isdir(folder) and not self.leaf.get('download'):
                text = f'does not exist: pass --cfg-options {self.key}.data_prefix.{name}=FOLDER'
                yield error('missing image folder', folder, '', text)

    def _build(self) -> tuple:
        """Build the dataset without its pipeline and without loading it; also return whether it would download."""
        options = {**self.leaf, 'pipeline': [], 'lazy_init': True, 'serialize_data': False}
        dataset = DATASETS.build(options)
        parameters = [inspect.signature(base.__init__).parameters for base in type(dataset).__mro__]
        default = next((found['download'].default for found in parameters if 'download' in found), None)
        if default is not None:
            dataset.download = False
        return dataset, bool(self.leaf.get('download', default))

    def _unusable(self, failure: Exception) -> Finding:
        return error(UNUSABLE, self.key, '', f'{self.leaf.get("type")} cannot be read: {one_line(failure)}')

    def _hint(self, dataset) -> str:
        suffix = self.leaf.get('img_suffix', getattr(dataset, 'img_suffix', None))
        classes = dataset.metainfo.get('classes')
        if suffix:
            return f': no file name ends in img_suffix {suffix!r}'
        return f': the classes are {", ".join(map(str, classes[:5]))}, ...' if classes else ''

    def _check_coco(self, path: str, classes: object, bases: set[str]) -> tuple[dict | None, list[Finding]]:
        content, found = coco.read(path, training=self.training)
        if content is not None:
            lvis = any(base.startswith('LVISV1') for base in bases)
            keys = [key for key in coco.IMAGE_KEYS if not (lvis and key == 'file_name')]
            classes = classes if isinstance(classes, (list, tuple)) else None
            flaws, kept = coco.check_file(path, content, image_keys=keys, classes=classes)
            found += flaws
            step = next((step for step in self.leaf.get('pipeline') or [] if step.get('with_mask')), None)
            if step:
                sizes = coco.image_sizes(content)
                found += coco_masks.check(path, kept, sizes, poly2mask=step.get('poly2mask', True))
        return content, found

    def _check_lines(self, bases: set[str]) -> Iterator[Finding]:
        """Check the lines `FILE LABEL` of an MMPretrain annotation file."""
        path = paths.annotation_file(self.leaf)
        if 'CustomDataset' not in bases or not path or not self.leaf.get('with_label', True):
            return
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            for number, line in enumerate(file, start=1):
                if re.search('[\udc80-\udcff]', line):
                    yield error(
                        'malformed line', path, f'line {number}', f'is not UTF-8: {os.fsencode(line.strip())!r}'
                    )
                    continue
                parts = line.strip().rsplit(' ', 1)
                if len(parts) != 2 or not parts[1].lstrip('-').isdigit():
                    text = f'must be FILE LABEL with an integer label, got {line.strip()!r}'
                    yield error('malformed line', path, f'line {number}', text)

    def _check_folders(self, dataset) -> Iterator[Finding]:
        part = self.leaf.get('indices') is not None  # a subset of the samples need not hold every class
        folders = {} if part else getattr(dataset, 'folder_to_idx', {})
        counts = Counter(sample.get('gt_label') for sample in self.samples)
        level, effect = (error, 'never learnt') if self.training else (warning, 'not measured')
        for name, label in folders.items():
            if not counts[label]:
                folder = os.path.join(dataset.img_prefix, name)
                text = f'has no image ({", ".join(sorted(dataset.extensions))}): class {label} is {effect}'
                yield level('empty class folder', folder, '', text)

    def _heads(self) -> Iterator[tuple[str, dict]]:
        model = self.cfg.model
        for owner, prefix in ((model, 'model'), (model.get('roi_head') or {}, 'model.roi_head')):
            for name in HEADS:
                heads = owner.get(name) or []
                several = isinstance(heads, (list, tuple))
                for i, head in enumerate(heads if several else [heads]):
                    if isinstance(head.get('num_classes'), int) and not head.get('class_agnostic'):
                        yield f'{prefix}.{name}' + (f'.{i}' if several else ''), head

    def _check_heads(self, open_vocabulary: bool) -> Iterator[Finding]:
        if isinstance(self.classes, str):
            text = f'must be a tuple of names, got the string {self.classes!r}: write ({self.classes!r},)'
            yield error('number of classes', f'{self.key}.metainfo.classes', '', text)
        elif self.classes and not open_vocabulary:
            for key, head in self._heads():
                count = len(self.classes)
                if head['num_classes'] != count:
                    level = warning if key == 'model.head' and head['num_classes'] > count else error
                    text = f'is {head["num_classes"]}, but {self.key} has {count} classes'
                    yield level('number of classes', f'{key}.num_classes', '', text)

    def _make_reader(self, dataset, *, masks: bool) -> None:
        heads = [head for _, head in self._heads()]
        counts = [head['num_classes'] for head in heads] + ([len(self.classes)] if masks and self.classes else [])
        loader = self.key.split('.')[0]
        owners = heads if self.training else [metric for _, metric in paths.evaluators(self.cfg, loader)]
        ignored = {owner.get('ignore_index', IGNORED) for owner in owners} or {IGNORED}
        self.reader = SampleCheck(
            self.leaf.get('pipeline'),
            labels=min(counts) if counts else None,
            ignored=ignored - {None} if len(ignored) == 1 else set(),  # labels that every head or metric ignores
            masks=masks,
            reduce_zero_label=getattr(dataset, 'reduce_zero_label', False),
        )
