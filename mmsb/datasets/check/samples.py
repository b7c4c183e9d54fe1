"""Check of single samples as a pipeline reads them: image, mask and label."""

import io
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence

import mmcv
import numpy as np
from mmengine.registry import TRANSFORMS, Registry
from PIL import Image, UnidentifiedImageError

from mmsb.options import one_line

from .findings import Finding, error, warning
from .ranges import Ranges, turned

WIDE_MODES = ('I', 'F')  # prefixes of Pillow's modes with more than 8 bits


def type_name(config: dict) -> str:
    """Return the name of a config's type, which may be a string or a class."""
    kind = config.get('type', '')
    return kind if isinstance(kind, str) else kind.__name__


def type_of(registry: Registry, config: dict) -> type | None:
    """Return the class of a config's type, searched from the default scope; None if there is none."""
    kind = config.get('type')
    if isinstance(kind, str):
        with warnings.catch_warnings(), registry.switch_scope_and_registry(None) as scoped:
            warnings.simplefilter('ignore')  # of the library, about packages that other types need
            return scoped.get(kind)
    return kind


def steps_of(pipeline: Sequence | None) -> Iterator[Mapping]:
    """Yield the steps of a pipeline, also those inside others, such as the views of TestTimeAug."""
    for step in pipeline or []:
        if isinstance(step, (list, tuple)):
            yield from steps_of(step)
        elif isinstance(step, Mapping):
            yield step
            yield from steps_of(step.get('transforms'))


def load_transform(pipeline: list, *names: str):
    """Build the first transform of a pipeline whose type name ends in one of `names`; None if there is none."""
    found = next((step for step in steps_of(pipeline) if type_name(step).endswith(names)), None)
    if found is None:
        return None
    hiding = ('ignore_empty', 'on_error')  # they would hide what the check looks for
    options = {key: value for key, value in found.items() if key not in hiding}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return TRANSFORMS.build(options)


def damage(content: bytes) -> tuple[str, bool] | None:
    """Describe what is wrong with an image file; decoders such as OpenCV's fill missing parts with grey.

    Returns:
        a description, and whether pixels are lost; None for an intact file or a format that Pillow does not know.
    """
    if not content:
        return 'is empty (0 bytes): download it again', True
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            warnings.simplefilter('ignore')
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None
    except OSError as failure:
        return f'is damaged ({failure}): download it again', True
    except Exception as failure:  # in many ways, Pillow is stricter than the decoders of the pipelines
        return f'reads with a warning ({failure})', False
    return None


class SampleCheck:
    """Check the samples of a dataset one at a time; safe to call from several threads.

    Args:
        pipeline: pipeline from the dataset's config; only its loading steps are used.
        labels: number of classes of the network or metric; None to skip the check of labels.
        ignored: mask labels that losses and metrics ignore.
        masks: whether the samples have masks to check.
        reduce_zero_label: the setting of the dataset.
    """

    def __init__(
        self,
        pipeline: list,
        *,
        labels: int | None,
        ignored: set[int] = frozenset((255,)),
        masks: bool = False,
        reduce_zero_label: bool = False,
    ) -> None:
        self.load_image = load_transform(pipeline, 'LoadImageFromFile', 'LoadImage')
        self.load_mask = load_transform(pipeline, 'LoadAnnotations') if masks else None
        self.setting: list[Finding] = []
        stated = getattr(self.load_mask, 'reduce_zero_label', None)
        if stated is not None and stated != reduce_zero_label:
            message = f'is {stated}, but {reduce_zero_label} in the dataset: training would stop at the first sample'
            self.setting.append(error('reduce_zero_label', 'LoadAnnotations.reduce_zero_label', '', message))
            self.load_mask.reduce_zero_label = reduce_zero_label
        self.labels = labels
        self.ignored = {label for label in ignored if 0 <= label < 256}
        self.reduced = reduce_zero_label
        self.lock = threading.Lock()  # for what is counted over all samples
        self.pixels, self.ranges = np.zeros(256, np.int64), Ranges()

    def __call__(self, sample: dict) -> list[Finding]:
        findings: list[Finding] = []
        path = sample.get('img_path')
        if not isinstance(path, str) or '://' in path:
            return findings
        found, size = self._check_image(path, sample)
        findings += found
        if self.load_mask is not None and sample.get('seg_map_path'):
            findings += self._check_mask(sample['seg_map_path'], sample, size)
        return findings

    def check_label(self, sample: dict) -> list[Finding]:
        """Check the label of a whole image, without reading it."""
        wrong = []
        if self.labels is not None and sample.get('gt_label') is not None:
            labels = np.atleast_1d(sample['gt_label']).ravel()
            wrong = [int(label) for label in labels if not 0 <= label < self.labels]
        file = str(sample.get('img_path', f'sample {sample.get("sample_idx")}'))
        message = f'is outside the {self.labels} classes (0 to {(self.labels or 0) - 1})'
        return [error('label beyond the classes', file, f'label {label}', message) for label in wrong]

    def _check_image(self, path: str, sample: dict) -> tuple[list[Finding], tuple[int, int] | None]:
        """Return the findings, and the width and height (px) that the pipeline sees; None if it sees no image."""
        item = f'image id {sample["img_id"]}' if 'img_id' in sample else ''
        findings, content = _read(path, 'image', item)
        if content is None or self.load_image is None:
            return findings, None
        try:
            image = self.load_image.transform(dict(img_path=path))['img']
            height, width = image.shape[:2]
        except Exception as failure:  # decoders raise exceptions of any type
            message = f'cannot be decoded ({one_line(failure)}): download it again'
            return [error('unreadable image', path, item, message)], None
        stated = sample.get('width'), sample.get('height')
        if None not in stated and stated != (width, height):
            message = f'is {width} x {height} px, but {stated[0]} x {stated[1]} px in the annotations'
            if stated == (height, width):
                message += ": EXIF rotates it; set LoadImageFromFile.color_type='color_ignore_orientation'"
            findings.append(error('image of another size', path, item, message))
        elif self.places(sample) and (turn := turned(content, self.load_image, width == height)):
            message = f'is read as its EXIF tag says, which {turn}: if its labels were drawn without regard to that, '
            message += "set LoadImageFromFile.color_type='color_ignore_orientation'"
            findings.append(warning('turned image', path, item, message))
        with self.lock:
            self.ranges.add(content, image)
        return findings, (width, height)

    @staticmethod
    def places(sample: dict) -> bool:
        """Tell whether the labels of a sample stand at places in its image, as boxes and masks do."""
        return bool(sample.get('seg_map_path') or any('bbox' in one for one in sample.get('instances') or []))

    def _check_mask(self, path: str, sample: dict, size: tuple[int, int] | None) -> list[Finding]:
        findings, content = _read(path, 'mask', '')
        if content is None:
            return findings
        try:
            mask = self.load_mask.transform({**sample, 'seg_fields': []})['gt_seg_map']
            highest = self._highest(content)
        except Exception as failure:
            message = f'cannot be decoded ({one_line(failure)}): create it again'
            return [*findings, error('unreadable mask', path, '', message)]
        if mask.ndim != 2:
            message = f'must have 1 channel, the class index, got {mask.shape[-1]} channels as the pipeline reads it'
            return [*findings, error('mask of several channels', path, '', message)]
        if highest > 255:
            message = f'labels up to {highest} do not fit in 8 bits: they wrap around'
            findings.append(error('label beyond the classes', path, '', message))
        if size is not None and mask.shape != size[::-1]:
            message = f'is {mask.shape[1]} x {mask.shape[0]} px, but its image is {size[0]} x {size[1]} px'
            findings.append(error('mask of another size', path, '', message))
        counts = np.bincount(mask.ravel(), minlength=256)
        with self.lock:
            self.pixels += counts
        counts[sorted(self.ignored)] = 0
        beyond = [] if self.labels is None else [int(i) for i in np.flatnonzero(counts) if i >= self.labels]
        if beyond:
            share = counts[beyond].sum() / mask.size
            message = (
                f'labels {beyond} ({share:.1%} of the pixels) are neither among the {self.labels} classes '
                f'(0 to {self.labels - 1}) nor ignored ({", ".join(map(str, sorted(self.ignored)))})'
            )
            findings.append(error('label beyond the classes', path, '', message))
        return findings

    def _highest(self, content: bytes) -> int:
        """Return the highest label of a mask with more than 8 bits; 0 for any other mask."""
        with Image.open(io.BytesIO(content)) as image:
            wide = image.mode.startswith(WIDE_MODES)
        if not wide:
            return 0
        return int(mmcv.imfrombytes(content, flag='unchanged', backend=self.load_mask.imdecode_backend).max())


def _read(path: str, what: str, item: str) -> tuple[list[Finding], bytes | None]:
    """Read a file; the content is None if there is nothing to decode."""
    if not os.path.isfile(path):
        return [error(f'missing {what}', path, item, 'does not exist')], None
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as failure:
        return [error(f'unreadable {what}', path, item, f'cannot be read ({failure.strerror})')], None
    flaw = damage(content)
    if flaw is None:
        return [], content
    message, lost = flaw
    if lost:
        return [error(f'damaged {what}', path, item, message)], None
    return [warning(f'odd {what}', path, item, message)], content
