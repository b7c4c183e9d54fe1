"""A trained network as a function of images, by the test pipeline of its config and its library's own `test_step`.

Differs from the libraries' inferencers: the checkpoint must fit as a whole and is loaded as data; images are loaded as
the config says, and those that can't be read are skipped; only images of one size share a batch, so that the batch size
does not change the predictions.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DefaultScope, init_default_scope

from mmsb.checkpoints.load import forget, load_checkpoint, require_file
from mmsb.configs import load_trained, read_config
from mmsb.datasets.test_pipeline import ImagePipeline
from mmsb.datasets.test_set import class_names, dataset_meta
from mmsb.exported import is_multi_label, kind_of, number_of_classes
from mmsb.models.any_network import channels_of
from mmsb.models.deploy import switch_to_deploy
from mmsb.options import choose, one_line, positive_integer

from . import inputs
from .drawn import VISUALIZERS, build_visualizer, draw
from .inputs import Picture

TOP = 5  # classes reported for an image


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network predicts for an image.

    Args:
        picture: the image.
        sample: the library's data sample.
        found: of a classifier, the most likely classes, each a dict of class, label and score; of one with several
            labels, all that it predicts; of a detector, the boxes, each a dict of class, label, score, bbox (left, top,
            width, height in px) and, with masks, the run-length encoded segmentation; of a segmenter, the label of each
            pixel, [H, W].
    """

    picture: Picture
    sample: object
    found: list[dict] | np.ndarray


class Inferencer:
    """A trained network as a function of images.

    Attributes:
        kind: 'classifier', 'detector' or 'segmenter'.
        classes: the class names, from the checkpoint, else from the dataset of the config.
        palette: a colour (red, green, blue) for each class.
        pipeline: the test pipeline of the config.

    Args:
        config: config file, or its content.
        checkpoint: file or URL.
        deploy: whether to fold all batch norms.
        device: such as 'cpu' or 'cuda:1'; None: a GPU if there is one.

    Raises:
        FileNotFoundError, ValueError, ImportError: one line that says what is wrong with an argument.
    """

    def __init__(
        self, config: str | Config, checkpoint: str | os.PathLike, *, deploy: bool = False, device: str | None = None
    ):
        cfg = copy.deepcopy(config) if isinstance(config, Config) else read_config(config)
        choose('default_scope of the config', cfg.get('default_scope'), VISUALIZERS)
        device = check_device(device)
        checkpoint = os.fspath(checkpoint)
        require_file(checkpoint)
        content = load_checkpoint(checkpoint, keep=True)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # what the libraries say of losses while they build
            self.model = load_trained(cfg, checkpoint)
        forget()
        self.kind = kind_of(self.model)
        self.pipeline = ImagePipeline(cfg, channels=channels_of(self.model))
        if deploy:
            switch_to_deploy(self.model)
        self.model.to(device)
        self.config, self.checkpoint = cfg, checkpoint
        self.classes, self.palette = _classes(cfg, content, self.model)
        self._visualizer = build_visualizer(cfg, dict(classes=self.classes, palette=self.palette))

    def __call__(
        self,
        files: str | os.PathLike | Iterable[str | os.PathLike],
        *,
        batch_size: int = 1,
        skip: Callable[[str, str], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predict images and frames of videos, one after the other.

        Args:
            files: files, folders or glob patterns, see `inputs.find`.
            batch_size: the most images of one size to predict at once.
            skip: called with the path and the reason for each file that can't be read; None: warn.

        Raises:
            FileNotFoundError: an input does not exist, or has no image or video.
        """
        positive_integer('batch_size', batch_size)
        paths = inputs.find(files)
        yield from self.predict(inputs.read(paths, self.pipeline, skip or _warn), batch_size=batch_size)

    def predict(self, pictures: Iterable[Picture], *, batch_size: int = 1) -> Iterator[Prediction]:
        """Predict images that are in memory."""
        for batch in _batches(pictures, batch_size):
            for picture, sample in zip(batch, self._forward(batch), strict=True):
                yield Prediction(picture, sample, self._found(sample))

    @torch.no_grad()
    def _forward(self, batch: list[Picture]) -> list:
        scope = DefaultScope.get_current_instance()
        if scope is None or scope.scope_name != self.config.default_scope:
            init_default_scope(self.config.default_scope)
        loaded = [picture.loaded or self.pipeline.of_pixels(picture.pixels, picture.path) for picture in batch]
        data = pseudo_collate([self.pipeline.prepare(results) for results in loaded])
        try:
            return self.model.test_step(data)
        except Exception as error:  # such as an image of other channels than the network takes
            raise ValueError(f'the network fails on image {batch[0].path!r}: {one_line(error)}') from error

    def _found(self, sample) -> list[dict] | np.ndarray:
        if self.kind == 'segmenter':
            return sample.pred_sem_seg.data[0].long().cpu().numpy()  # with one output they are floats
        if self.kind == 'detector':
            return self._boxes(sample)
        if 'pred_score' not in sample:
            raise ValueError(
                f'{type(self.model.head).__name__} gives no score for each class, and this command needs them'
            )
        scores = sample.pred_score.float().cpu()
        labels = scores.argsort(descending=True).tolist()
        if is_multi_label(self.model):  # by the threshold, or the number, of its head
            predicted = set(sample.pred_label.tolist())
            labels = [label for label in labels if label in predicted]
        else:
            labels = labels[:TOP]
        return [{'class': self.classes[label], 'label': label, 'score': scores[label].item()} for label in labels]

    def _boxes(self, sample) -> list[dict]:
        instances = sample.pred_instances.cpu()
        corners = instances.bboxes.tolist()
        labels, scores = instances.labels.tolist(), instances.scores.tolist()
        boxes = [
            {
                'class': self.classes[label],
                'label': label,
                'score': score,
                'bbox': [left, top, right - left, bottom - top],
            }
            for label, score, (left, top, right, bottom) in zip(labels, scores, corners, strict=True)
        ]
        if 'masks' in instances:
            from mmdet.structures.mask import encode_mask_results  # only of this library

            for box, mask in zip(boxes, encode_mask_results(instances.masks), strict=True):
                box['segmentation'] = {**mask, 'counts': mask['counts'].decode()}
        return boxes

    def draw(self, prediction: Prediction, *, min_score: float = 0.3) -> np.ndarray:
        """Draw a prediction over its image.

        Args:
            prediction: made by this inferencer.
            min_score: boxes below it are left out.

        Returns:
            [H, W, 3], 8-bit RGB.
        """
        options = dict(draw_gt=False)
        if self.kind == 'detector':
            options['pred_score_thr'] = min_score
        return draw(self._visualizer, prediction.picture.pixels, prediction.sample, **options)


def check_device(device: str | None) -> str:
    """Return the name of a device on which tensors can be made, by default that of MMEngine.

    Raises:
        ValueError: there is none of this name.
    """
    device = device or get_device()
    try:
        torch.empty(0, device=device)
    except Exception as error:  # torch raises several types, depending on the device
        raise ValueError(f'device {device!r} cannot be used: {one_line(error).split(". ")[0]}') from error
    return device


def _warn(path: str, reason: str) -> None:
    warnings.warn(f'skipped {path!r}, which {reason}', stacklevel=2)


def _batches(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Group consecutive images of one size."""
    batch: list[Picture] = []
    for picture in pictures:
        if batch and (len(batch) == size or picture.pixels.shape != batch[0].pixels.shape):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def _classes(cfg: Config, checkpoint: object, model) -> tuple[list[str], list]:
    """Find the names and colours of the classes; where nothing names a class, its number does."""
    given = class_names(cfg, checkpoint)
    head = cfg.model.get('head') or {}
    number = number_of_classes(model) or head.get('num_classes') or len(given)
    classes = [*given[:number], *map(str, range(len(given), number))]
    palettes = (one.get('palette') for one in dataset_meta(cfg, checkpoint))
    palette = next((list(one) for one in palettes if isinstance(one, (list, tuple)) and len(one) >= number), None)
    if palette is None:
        palette = np.random.RandomState(42).randint(32, 224, (number, 3)).tolist()
    return classes, [tuple(colour) for colour in palette[:number]]
