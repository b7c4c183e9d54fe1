"""Batches for a training step and for a prediction, of the kind that a network takes."""

import torch
from mmengine.config import Config
from torch import nn

from benchmarks.upstream import samples
from benchmarks.upstream.networks import SMALL_PX, dicts_in
from benchmarks.upstream.samples import IMAGES, PERSON, ROAD, image

SIZE = (SMALL_PX, SMALL_PX)
SIZES_OF_DETECTORS = [(SMALL_PX, SMALL_PX + 32), (SMALL_PX + 32, SMALL_PX)]
CROP_PX = 64  # of SwAV, whose last views are smaller


def ancestors(model: nn.Module) -> set[str]:
    """Name the classes that a network is an instance of."""
    return {kind.__name__ for kind in type(model).__mro__}


def batch_for(cfg: Config, model: nn.Module, *, training: bool) -> dict:
    """Make a batch as a dataloader would: `inputs` and `data_samples`.

    Two images in training, one in a prediction.
    """
    kinds = ancestors(model)
    count = IMAGES if training else 1
    if 'SemiBaseDetector' in kinds and training:
        return _three_branches(cfg)
    if 'BaseMOTModel' in kinds and not (training and model.data_preprocessor.use_det_processor):
        return _videos(cfg, count)
    if 'BaseReID' in kinds:
        return _people(2 * count)
    if 'CLRNet' in kinds:
        return _images([ROAD] * count, lambda size, i: samples.lanes_sample(size))
    if kinds & {'BaseDetector', 'BaseMOTModel'}:
        one_size = any(node.get('keep_ratio') is False for node in dicts_in(cfg.get('train_dataloader')))  # YOLACT
        sizes = [SIZE] * count if one_size else SIZES_OF_DETECTORS[:count]
        return _images(sizes, lambda size, i: samples.detection_sample(cfg, size, i))
    if 'BaseSegmentor' in kinds:
        return _images([SIZE] * count, lambda size, i: samples.segmentation_sample(cfg, size, i))
    if 'BaseSelfSupervisor' in kinds:
        return _views(cfg, count) if training else dict(inputs=torch.stack([image(SIZE, 0)]), data_samples=None)
    several = any(node.get('type') in ('CSRAClsHead', 'MultiLabelClsHead') for node in dicts_in(cfg.model))
    batch = _images([SIZE] * count, lambda size, i: samples.classification_sample(cfg, size, i, several))
    return {**batch, 'inputs': torch.stack(batch['inputs'])}


def _images(sizes: list, make_sample) -> dict:
    inputs = [image(size, i) for i, size in enumerate(sizes)]
    return dict(inputs=inputs, data_samples=[make_sample(size, i) for i, size in enumerate(sizes)])


def _three_branches(cfg: Config) -> dict:
    branches = {
        name: _images(SIZES_OF_DETECTORS, lambda size, i: samples.detection_sample(cfg, size, i))
        for name in ('sup', 'unsup_teacher', 'unsup_student')
    }
    return {key: {name: branch[key] for name, branch in branches.items()} for key in ('inputs', 'data_samples')}


def _videos(cfg: Config, count: int) -> dict:
    inputs, tracks = zip(*(samples.video(cfg, SIZE, 2, i) for i in range(count)), strict=True)
    return dict(inputs=list(inputs), data_samples=list(tracks))


def _people(count: int) -> dict:
    inputs = [image(PERSON, i) for i in range(count)]
    return dict(inputs=torch.stack(inputs), data_samples=[samples.reid_sample(i) for i in range(count)])


def _views(cfg: Config, count: int) -> dict:
    """Make views, each a batch: two, or as many as a pipeline of several crops has."""
    numbers = [node['num_views'] for node in dicts_in(cfg.train_dataloader.to_dict()) if 'num_views' in node]
    sizes = [SIZE] * 2
    if numbers and isinstance(numbers[0], (list, tuple)):
        sizes = [SIZE] * numbers[0][0] + [(CROP_PX, CROP_PX)] * sum(numbers[0][1:])
    views = [torch.stack([image(size, count * v + i) for i in range(count)]) for v, size in enumerate(sizes)]
    return dict(inputs=views, data_samples=[samples.classification_sample(cfg, SIZE, i, False) for i in range(count)])
