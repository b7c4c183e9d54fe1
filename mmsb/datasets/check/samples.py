"""Check of single samples as a pipeline reads them: image, mask and label."""

import io
import os
import warnings

import mmcv
import numpy as np
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from mmsb.options import one_line

from .findings import Finding, error, warning

WIDE_MODES = ('I', 'F')  # Pillow's modes of more than 8 bits begin so


def type_name(config: dict) -> str:
    """Return the name of a config's type, which may be a class as well."""
    kind = config.get('type', '')
    return kind if isinstance(kind, str) else kind.__name__


def load_transform(pipeline: list, *names: str):
    """Build the first transform of a pipeline whose type ends in one of `names`; None if there is none."""
    found = next((step for step in pipeline or [] if type_name(step).endswith(names)), None)
    if found is None:
        return None
    hiding = ('ignore_empty', 'on_error')  # what is wanted here
    options = {key: value for key, value in found.items() if key not in hiding}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return TRANSFORMS.build(options)


def damage(content: bytes) -> tuple[str, bool] | None:
    """Say what is wrong with an image file; decoders such as OpenCV's fill what is missing with grey.

    Returns:
        what is wrong, and whether pixels are lost; None for a sound file and for a format that Pillow does not know.
    """
    if not content:
        return 'is empty (0 bytes): fetch it again', True
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            warnings.simplefilter('ignore')
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None
    except OSError as failure:
        return f'is damaged ({failure}): fetch it again', True
    except Exception as failure:  # Pillow is stricter than the decoders of the pipelines, in many ways
        return f'is read with a complaint ({failure})', False
    return None


class SampleCheck:
    """Check one sample of a dataset after the other; may be called from several threads.

    Args:
        pipeline: of the dataset's config; its loading steps are used.
        labels: number of classes that the network or the metric knows; None to check no labels.
        ignored: labels of masks that losses and metrics leave out.
        masks: whether the samples have masks to be checked.
        reduce_zero_label: of the dataset.
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
            message = f'is {stated}, and {reduce_zero_label} in the dataset: training stops at the first sample'
            self.setting.append(error('reduce_zero_label', 'LoadAnnotations.reduce_zero_label', '', message))
            self.load_mask.reduce_zero_label = reduce_zero_label
        self.labels = labels
        self.ignored = ignored
        self.labelled_pixels = False  # in any mask up to now

    def __call__(self, sample: dict) -> list[Finding]:
        findings = self._check_label(sample)
        path = sample.get('img_path')
        if not isinstance(path, str) or '://' in path:
            return findings
        found, size = self._check_image(path, sample)
        findings += found
        if self.load_mask is not None and sample.get('seg_map_path'):
            findings += self._check_mask(sample['seg_map_path'], sample, size)
        return findings

    def _check_label(self, sample: dict) -> list[Finding]:
        wrong = []
        if self.labels is not None and sample.get('gt_label') is not None:
            labels = np.atleast_1d(sample['gt_label']).ravel()
            wrong = [int(label) for label in labels if not 0 <= label < self.labels]
        file = str(sample.get('img_path', f'sample {sample.get("sample_idx")}'))
        message = f'is none of the {self.labels} classes (0 to {(self.labels or 0) - 1})'
        return [error('label beyond the classes', file, f'label {label}', message) for label in wrong]

    def _check_image(self, path: str, sample: dict) -> tuple[list[Finding], tuple[int, int] | None]:
        """Return the findings, and width and height (px) as the pipeline sees them, if it does."""
        item = f'image id {sample["img_id"]}' if 'img_id' in sample else ''
        findings, content = _read(path, 'image', item)
        if content is None or self.load_image is None:
            return findings, None
        try:
            height, width = self.load_image.transform(dict(img_path=path))['img'].shape[:2]
        except Exception as failure:  # decoders raise what they like
            message = f'does not decode ({one_line(failure)}): fetch it again'
            return [error('unreadable image', path, item, message)], None
        stated = sample.get('width'), sample.get('height')
        if None not in stated and stated != (width, height):
            message = f'is {width} x {height} px, and {stated[0]} x {stated[1]} px in the annotations'
            if stated == (height, width):
                message += ": its EXIF orientation turns it; LoadImageFromFile.color_type='color_ignore_orientation'"
            findings.append(error('image of another size', path, item, message))
        return findings, (width, height)

    def _check_mask(self, path: str, sample: dict, size: tuple[int, int] | None) -> list[Finding]:
        findings, content = _read(path, 'mask', '')
        if content is None:
            return findings
        try:
            mask = self.load_mask.transform({**sample, 'seg_fields': []})['gt_seg_map']
            highest = self._highest(content)
        except Exception as failure:
            message = f'does not decode ({one_line(failure)}): make it again'
            return [*findings, error('unreadable mask', path, '', message)]
        if mask.ndim != 2:
            message = f'has {mask.shape[-1]} channels as the pipeline reads it, needs 1: the index of the class'
            return [*findings, error('mask of several channels', path, '', message)]
        if highest > 255:
            message = f'labels up to {highest} do not fit into 8 bits: they are wrapped around'
            findings.append(error('label beyond the classes', path, '', message))
        if size is not None and mask.shape != size[::-1]:
            message = f'is {mask.shape[1]} x {mask.shape[0]} px, and its image {size[0]} x {size[1]} px'
            findings.append(error('mask of another size', path, '', message))
        counts = np.bincount(mask.ravel(), minlength=256)
        counts[[label for label in self.ignored if 0 <= label < 256]] = 0
        self.labelled_pixels |= bool(counts.any())
        beyond = [] if self.labels is None else [int(i) for i in np.flatnonzero(counts) if i >= self.labels]
        if beyond:
            share = counts[beyond].sum() / mask.size
            message = (
                f'labels {beyond} ({share:.1%} of the pixels) are none of the {self.labels} classes '
                f'(0 to {self.labels - 1}) nor ignored ({", ".join(map(str, sorted(self.ignored)))})'
            )
            findings.append(error('label beyond the classes', path, '', message))
        return findings

    def _highest(self, content: bytes) -> int:
        """Return the highest label of a mask of more than 8 bits, 0 of any other."""
        with Image.open(io.BytesIO(content)) as image:
            wide = image.mode.startswith(WIDE_MODES)
        if not wide:
            return 0
        return int(mmcv.imfrombytes(content, flag='unchanged', backend=self.load_mask.imdecode_backend).max())


def _read(path: str, what: str, item: str) -> tuple[list[Finding], bytes | None]:
    """Read a file; no content if there is nothing that could be decoded."""
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
