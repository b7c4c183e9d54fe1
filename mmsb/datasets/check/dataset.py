"""Check one dataset of a config: its files, samples, classes and labels. Its images are checked separately."""

import contextlib
import inspect
import io
import os
import re
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmsb.datasets import paths
from mmsb.datasets.test_set import loads_image
from mmsb.options import one_line

from . import boxes, coco, coco_masks, folders, formats, names, suffixes
from .findings import Finding, error, warning
from .samples import SampleCheck, steps_of, type_of

HEADS = ('head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')
IGNORED = 255  # default of mmseg's losses and metrics
COCO_FORMAT = {'CocoDataset', 'BaseVideoDataset'}
RETRIEVAL = {'InShop', 'ReIDDataset'}
UNUSABLE = 'unusable dataset'  # it can't be built or listed: often a mistake in the config


class DatasetCheck:
    """One dataset of a config. `look` checks everything that needs no image, and lists the samples.

    Args:
        cfg: the final config.
        key: key of the dataset in it.
        leaf: the dataset's config.
        training: whether its split is trained on.
        dataset: the dataset, if it has been built; else `look` builds it, without its pipeline.
        class_folders: those of the datasets so far, to which `look` adds its own.
    """

    def __init__(
        self,
        cfg: Config,
        key: str,
        leaf: dict,
        *,
        training: bool,
        dataset: object = None,
        class_folders: list[folders.Folders],
    ) -> None:
        self.cfg, self.key, self.leaf, self.training = cfg, key, leaf, training
        self._built, self._class_folders = dataset, class_folders
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
            except Exception as failure:  # a dataset may be any code
                yield self._unusable(failure)
                return
        bases = {base.__name__ for base in type(dataset).__mro__}
        in_coco_format = bases & COCO_FORMAT and 'CocoPanopticDataset' not in bases
        if missing and not in_coco_format:
            return
        coco_file = paths.annotation_file(self.leaf) if in_coco_format else None
        if coco_file:
            content, found = self._check_coco(coco_file, dataset.metainfo.get('classes'), bases)
            if not self.training:
                self.path, self.content = coco_file, content
        else:
            content, found = None, self._check_text(dataset, bases)
        yield from found
        wrong = any(one.level == 'error' for one in found)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
                getattr(dataset, 'full_init', lambda: None)()  # MultiTaskDataset has read all when it is built
            samples = getattr(dataset, 'data_list', None) or [dataset.get_data_info(i) for i in range(len(dataset))]
            self.classes = dataset.metainfo.get('classes')
        except Exception as failure:
            if downloads:
                text = 'is missing or damaged: the run downloads it when it starts'
                yield warning('missing data', str(self.leaf.get('data_root')), '', text)
            elif not wrong:
                left_out = suffixes.left_out(dataset)
                yield self._empty(dataset, left_out) if left_out else self._unusable(failure)
            elif content and not missing:
                folder = dataset.data_prefix.get('img') or dataset.data_prefix.get('img_path', '')
                self.samples = list(coco.samples(content, folder))
                self._make_reader(dataset, masks=False)
            return
        samples = [image for one in samples for image in one['images']] if 'BaseVideoDataset' in bases else samples
        self.samples = [] if missing else samples
        if not wrong:
            yield from self._check_empty(dataset, samples, coco_file)
        if coco_file and content and hasattr(dataset, 'cat_ids') and isinstance(self.classes, (list, tuple)):
            args = (coco_file, content, self.classes, list(dataset.cat_ids))
            yield from coco.check_classes(*args, training=self.training)
        yield from names.check_classes(self.key, self.leaf, dataset, bases)
        self._make_reader(dataset, masks='BaseSegDataset' in bases)
        yield from self.reader.setting
        beyond = list(self._check_labels(bases))
        if not any(one.kind == folders.HIDDEN_FOLDER for one in found):
            yield from self._check_folders(dataset, sound=not any(one.level == 'error' for one in beyond))
        yield from self._check_heads('return_classes' in self.leaf)
        yield from beyond
        if not coco_file:
            count = len(self.classes) if isinstance(self.classes, (list, tuple)) else None
            yield from boxes.check_boxes(self.key, self.samples, count, extends='CrowdHumanDataset' in bases)
        yield from self._check_files(dataset)

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
        kind = type_of(DATASETS, self.leaf)
        parameters = [inspect.signature(base.__init__).parameters for base in getattr(kind, '__mro__', ())]
        taken = {name for found in parameters for name in found}
        options = {key: value for key, value in (('lazy_init', True), ('serialize_data', False)) if key in taken}
        dataset = DATASETS.build({**self.leaf, 'pipeline': [], **options})
        default = next((found['download'].default for found in parameters if 'download' in found), None)
        if default is not None:
            dataset.download = False
        return dataset, bool(self.leaf.get('download', default))

    def _unusable(self, failure: Exception) -> Finding:
        return error(UNUSABLE, self.key, '', f'{self.leaf.get("type")} cannot be read: {one_line(failure)}')

    def _empty(self, dataset, left_out: str) -> Finding:
        text = f'has no samples left (data_root {self.leaf.get("data_root")!r}, '
        text += f'data_prefix {dict(dataset.data_prefix)}, ann_file {self.leaf.get("ann_file", "")!r})'
        hint = self._hint(dataset) + (f'; {left_out}' if left_out else '')
        return error('empty split', self.key, '', text + hint)

    def _hint(self, dataset) -> str:
        suffix = self.leaf.get('img_suffix', getattr(dataset, 'img_suffix', None))
        classes = dataset.metainfo.get('classes')
        if suffix:
            return f': no file name ends in img_suffix {suffix!r}'
        return f': the classes are {names.some(classes)}' if classes else ''

    def _check_coco(self, path: str, classes: object, bases: set[str]) -> tuple[dict | None, list[Finding]]:
        content, found = coco.read(path, training=self.training)
        if content is not None:
            lvis = any(base.startswith('LVISV1') for base in bases)
            keys = [key for key in coco.IMAGE_KEYS if not (lvis and key == 'file_name')]
            classes = classes if isinstance(classes, (list, tuple)) else None
            flaws, kept = coco.check_file(path, content, image_keys=keys, classes=classes)
            found += flaws
            step = next((step for step in steps_of(self.leaf.get('pipeline')) if step.get('with_mask')), None)
            if step:
                sizes = coco.image_sizes(content)
                found += coco_masks.check(path, kept, sizes, poly2mask=step.get('poly2mask', True))
        return content, found

    def _check_text(self, dataset, bases: set[str]) -> list[Finding]:
        stated = self._stated_classes(dataset)
        number = folders.check_number(dataset, stated, self._class_folders)
        return [*self._check_lines(bases), *formats.check_file(dataset, bases), *number]

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

    def _stated_classes(self, dataset) -> list:
        """List the classes of the config or of the dataset's type, which the folders have not named."""
        stated = (self.leaf.get('metainfo') or {}).get('classes') or self.leaf.get('classes')
        stated = stated or (getattr(type(dataset), 'METAINFO', None) or {}).get('classes')
        return list(dataset.metainfo.get('classes') or ()) if stated else []

    def _check_empty(self, dataset, samples: list[dict], coco_file: str | None) -> Iterator[Finding]:
        needed = self.training or not (coco_file or self.key.startswith('test'))  # a test may have no labels
        if not samples:
            yield self._empty(dataset, suffixes.left_out(dataset))
        elif needed and boxes.has_boxes(samples) is False:
            yield error('empty split', self.key, '', 'has no boxes left to learn from or to measure')

    def _check_labels(self, bases: set[str]) -> Iterator[Finding]:
        if self.training or not bases & RETRIEVAL:  # whose other splits have other identities
            file = paths.annotation_file(self.leaf)
            args = (self.key, self.samples, self.reader.labels, file, self.reader.check_label)
            yield from boxes.check_labels(*args)

    def _check_folders(self, dataset, *, sound: bool) -> Iterator[Finding]:
        by_folder, first = hasattr(dataset, 'folder_to_idx'), not self._class_folders
        if sound or by_folder:
            args = (self.key, dataset, self.samples, self.classes, self._class_folders)
            yield from folders.check_folders(*args, training=self.training)
        if by_folder and not first and not self._stated_classes(dataset):
            self.classes = None  # the folders have been compared

    def _check_files(self, dataset) -> Iterator[Finding]:
        step = next(filter(loads_image, steps_of(self.leaf.get('pipeline'))), {})
        backend = step.get('backend_args') or step.get('file_client_args') or {}
        skips = step.get('on_error') == 'skip' or step.get('ignore_empty')
        images = self.reader.load_image is not None and not skips and backend.get('backend', 'local') == 'local'
        yield from suffixes.check_missing(self.samples, images=images, masks=self.reader.load_mask is not None)
        if self.samples:
            yield from suffixes.check_left_out(dataset, self.samples, shared_masks=self._shares_masks())

    def _shares_masks(self) -> bool:
        """Tell whether the folder of the masks belongs to other images of the config too."""
        sets = ((self.cfg.get(key) or {}).get('dataset') or {} for key in paths.LOADERS)
        others = [paths.image_folders(leaf) for one in sets for _, leaf in paths.leaf_datasets(one, '')]
        own = paths.image_folders(self.leaf)
        images, masks = own.get('img_path'), own.get('seg_map_path')
        return any(other.get('seg_map_path') == masks and other.get('img_path') != images for other in others)

    def heads(self) -> Iterator[tuple[str, dict]]:
        model = self.cfg.model.get('module') or self.cfg.model  # that of `--tta` wraps the network
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
            for key, head in self.heads():
                count = len(self.classes)
                if head['num_classes'] != count:
                    level = warning if key == 'model.head' and head['num_classes'] > count else error
                    text = f'is {head["num_classes"]}, but {self.key} has {count} classes'
                    yield level('number of classes', f'{key}.num_classes', '', text)

    def _make_reader(self, dataset, *, masks: bool) -> None:
        heads = [head for _, head in self.heads()]
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
