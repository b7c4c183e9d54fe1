"""Trained networks on pictures: the network of a checkpoint, a picture as the network sees it, and its answer."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmsb.checkpoints.load import load_state_dict
from mmsb.configs import build_model, check_library, drop_warm_starts
from mmsb.datasets.test_set import dataset_with_pipeline, from_bgr, loads_image, takes_rgb
from mmsb.exported import kind_of, to_scores
from mmsb.models.bottleneck import BIAS_PARTS
from mmsb.models.weights import check_fit
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


def load_trained(cfg: Config, checkpoint: str, *, bias: bool = True) -> nn.Module:
    """Build the network of a config with the weights of a checkpoint, in evaluation mode.

    Args:
        cfg: the config; its warm starts are ignored.
        checkpoint: path or URL.
        bias: whether to build spatial bias; without it, the weights of the bias are left out.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: it belongs to another network.
        ImportError: the library of the config is missing.
    """
    check_library(cfg)
    state = load_state_dict(checkpoint)
    cfg = copy.deepcopy(cfg)
    drop_warm_starts(cfg.model)
    if not bias:
        cfg.model.backbone.spatial_bias = None
        state = {key: value for key, value in state.items() if not set(key.split('.')) & set(BIAS_PARTS)}
    model = build_model(cfg)
    check_fit(checkpoint, model.state_dict(), state)
    model.load_state_dict(state)
    return model.eval()


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
    steps = _pipeline_of(cfg)
    load = Compose([dict(type='mmsb.LoadImage')])
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    results = load(dict(img_path=str(path), img_id=0, sample_idx=0, seg_fields=[]))
    results['img'] = from_bgr(steps)(results['img'])
    after = [step for step in steps if not loads_image(step) and 'Annotation' not in str(step['type'])]
    try:
        packed = Compose(after)(results)
        batch = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
        batch = model.data_preprocessor(batch, training=False)
    except Exception as error:  # from any transform
        reason = one_line(error)
        raise ValueError(f'image {str(path)!r} does not pass the test pipeline of the config: {reason}') from error
    pixels = _pixels(model.data_preprocessor, batch['inputs'][0], rgb=takes_rgb(steps))
    return Picture(str(path), pixels, batch['inputs'], batch['data_samples'])


def _pipeline_of(cfg: Config) -> list:
    dataset = dataset_with_pipeline(cfg)
    if not dataset.get('pipeline'):
        raise ValueError(f'config {cfg.filename!r} has no test_dataloader.dataset.pipeline to read an image with')
    return list(dataset['pipeline'])


def _pixels(preprocessor: nn.Module, image: Tensor, rgb: bool) -> np.ndarray:
    """Undo the normalisation of an image (C, H, W), loaded as RGB or BGR."""
    if getattr(preprocessor, '_enable_normalize', False):
        image = image * preprocessor.std.view(-1, 1, 1) + preprocessor.mean.view(-1, 1, 1)
    swapped = any(getattr(preprocessor, key, False) for key in ('to_rgb', '_channel_conversion'))
    image = image if rgb != swapped else image.flip(0)
    return image.round().clamp(0, 255).byte().expand(3, -1, -1).permute(1, 2, 0).numpy()


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
