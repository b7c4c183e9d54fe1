"""Trained networks on pictures: the network of a checkpoint, a picture as the network sees it, and its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from mmsb.datasets.test_pipeline import ImagePipeline, to_8_bit
from mmsb.exported import kind_of, to_scores
from mmsb.models.any_network import channels_of
from mmsb.options import one_line

MIN_SCORE = 0.3  # of a box that is shown


@dataclass(frozen=True)
class Picture:
    """An image file after the test pipeline of a config.

    Attributes:
        path: the file.
        pixels: what the network sees, RGB with 8 bits, (H, W, 3): resized, cropped and padded.
        inputs: the same as the network reads it, normalised, (1, C, H, W).
        samples: the library's data samples, one.
    """

    path: str
    pixels: np.ndarray
    inputs: Tensor
    samples: list


@dataclass(frozen=True)
class Answer:
    """What a network says about a picture.

    Attributes:
        kind: 'classifier', 'segmenter', 'detector', or 'network' for one of another kind, which has no answer here.
        rows: names with their scores, from 0 to 1, the highest first: classes, classes with their shares of the
            pixels, or objects.
        boxes: of a detector, one a row: left, top, right, bottom in pixels.
    """

    kind: str
    rows: list[tuple[str, float]] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the backbone of a model.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(getattr(model, 'backbone', None), nn.Module):
        raise ValueError(f'{type(model).__name__} has no backbone to look into')
    return model.backbone


def kind_or_network(model: nn.Module) -> str:
    """Return 'classifier', 'segmenter', 'detector', or 'network' for one of another kind."""
    try:
        return kind_of(model)
    except ValueError:
        return 'network'


def read_picture(cfg: Config, model: nn.Module, path: str | Path) -> Picture:
    """Read an image file as the test pipeline and the data preprocessor of a config prepare it.

    Raises:
        ValueError: the file is missing or no sound image, or the config has no test pipeline that takes it.
    """
    pipeline = ImagePipeline(cfg, channels=channels_of(model))
    packed = pipeline.prepare(pipeline.load(path))
    try:
        batch = model.data_preprocessor(pseudo_collate([packed]), training=False)
    except Exception as error:  # of any preprocessor
        raise ValueError(f'image {str(path)!r} does not pass the data preprocessor: {one_line(error)}') from error
    pixels = _pixels(model.data_preprocessor, batch['inputs'][0], rgb=pipeline.rgb)
    return Picture(str(path), pixels, batch['inputs'], batch['data_samples'])


def _pixels(preprocessor: nn.Module, image: Tensor, rgb: bool) -> np.ndarray:
    """Undo the normalisation of an image (C, H, W), loaded as RGB or BGR, for a look at it: (H, W, 3)."""
    if getattr(preprocessor, '_enable_normalize', False):
        image = image * preprocessor.std.view(-1, 1, 1) + preprocessor.mean.view(-1, 1, 1)
    swapped = len(image) == 3 and any(getattr(preprocessor, key, False) for key in ('to_rgb', '_channel_conversion'))
    pixels = to_8_bit(image.permute(1, 2, 0).numpy())
    return pixels if rgb != swapped else np.ascontiguousarray(pixels[..., ::-1])


@torch.no_grad()
def answer_of(model: nn.Module, picture: Picture, classes: Sequence[str] = (), top: int = 5) -> Answer:
    """Ask a network about a picture.

    Args:
        model: classifier, segmenter or detector, in evaluation mode; others give no answer.
        picture: from `read_picture`.
        classes: their names.
        top: number of rows.
    """
    kind = kind_or_network(model)
    if kind == 'network':
        return Answer(kind)

    def name(label: int) -> str:
        return classes[label] if label < len(classes) else f'class {label}'

    if kind == 'detector':
        found = model.predict(picture.inputs, picture.samples, rescale=False)[0].pred_instances
        found = found[found.scores >= MIN_SCORE]
        found = found[found.scores.argsort(descending=True)[:top]]
        rows = [(name(int(label)), float(score)) for label, score in zip(found.labels, found.scores, strict=True)]
        return Answer(kind, rows, [list(map(float, box)) for box in found.bboxes])
    if kind == 'classifier':
        scores = to_scores(model, model.head(model.extract_feat(picture.inputs)))[0]
    else:
        metas = [dict(img_shape=picture.inputs.shape[2:])]
        logits = model.encode_decode(picture.inputs, metas)[0]
        head = model.decode_head
        labels = (logits[0].sigmoid() > head.threshold).long() if len(logits) == 1 else logits.argmax(0)
        scores = labels.flatten().bincount(minlength=max(2, len(logits))).double() / labels.numel()
    best = scores.argsort(descending=True)[:top]
    return Answer(kind, [(name(int(label)), float(scores[label])) for label in best if scores[label] > 0])
