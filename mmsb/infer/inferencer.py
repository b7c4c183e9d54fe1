"""A trained network as a function of images, by the inferencer of its library.

Differs from the libraries' inferencers: the checkpoint must fit as a whole and is loaded as data; images that can't be
read are skipped; only images of one size share a batch, so that the batch size does not change the predictions.
"""

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import DefaultScope, init_default_scope

from mmsb.checkpoints.load import forget, load_checkpoint, load_state_dict, require_file
from mmsb.configs import check_library, drop_warm_starts, read_config
from mmsb.datasets.test_set import class_names, dataset_meta, dataset_with_pipeline, from_bgr
from mmsb.exported import kind_of
from mmsb.models.deploy import switch_to_deploy
from mmsb.models.weights import check_fit
from mmsb.options import choose, one_line, positive_integer

from . import inputs
from .inputs import Picture

VISUALIZERS = {'mmpretrain': 'UniversalVisualizer', 'mmdet': 'DetLocalVisualizer', 'mmseg': 'SegLocalVisualizer'}
TOP = 5  # classes reported for an image
_DRAWN_SIDE_PX = 256  # shorter side below which an image is enlarged to take the text of its class


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network predicts for an image.

    Args:
        picture: the image.
        sample: the library's data sample.
        found: of a classifier, the most likely classes, each a dict of class, label and score; of a detector, the
            boxes, each a dict of class, label, score, bbox (left, top, width, height in px) and, with masks, the
            run-length encoded segmentation; of a segmenter, the label of each pixel, [H, W].
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
        library = choose('default_scope of the config', cfg.get('default_scope'), VISUALIZERS)
        check_library(cfg)
        device = check_device(device)
        checkpoint = os.fspath(checkpoint)
        require_file(checkpoint)
        self._from_bgr = _prepare(cfg, library)
        state = load_state_dict(checkpoint, keep=True)
        content = load_checkpoint(checkpoint, keep=True)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # they print what they load
            warnings.simplefilter('ignore')  # about class names, which are set below
            self._inferencer = _build(library, cfg, checkpoint, device)
        forget()
        self.model = self._inferencer.model
        check_fit(checkpoint, self.model.state_dict(), state)
        if deploy:
            switch_to_deploy(self.model)
        self.kind = kind_of(self.model)
        self.config, self.checkpoint = cfg, checkpoint
        self.classes, self.palette = _classes(cfg, content, self.model)
        self._visualizer = self._inferencer.visualizer or _build_visualizer()
        self._visualizer.dataset_meta = dict(classes=self.classes, palette=self.palette)

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
        yield from self.predict(inputs.read(paths, skip or _warn), batch_size=batch_size)

    def predict(self, pictures: Iterable[Picture], *, batch_size: int = 1) -> Iterator[Prediction]:
        """Predict images that are in memory."""
        for batch in _batches(pictures, batch_size):
            samples = self._forward([picture.pixels for picture in batch])
            for picture, sample in zip(batch, samples, strict=True):
                yield Prediction(picture, sample, self._found(sample))

    def _forward(self, images: list[np.ndarray]) -> list:
        scope = DefaultScope.get_current_instance()
        if scope is None or scope.scope_name != self.config.default_scope:
            init_default_scope(self.config.default_scope)
        samples, images = [], [self._from_bgr(image) for image in images]
        for data in self._inferencer.preprocess(images, batch_size=len(images)):
            data = data[1] if self.config.default_scope == 'mmdet' else data  # mmdet's come with their images
            samples += self._inferencer.forward(data)
        return samples

    def _found(self, sample) -> list[dict] | np.ndarray:
        if self.kind == 'segmenter':
            return sample.pred_sem_seg.data[0].cpu().numpy()
        if self.kind == 'detector':
            return self._boxes(sample)
        scores = sample.pred_score.float().cpu()
        best = scores.topk(min(TOP, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{'class': self.classes[label], 'label': label, 'score': score} for label, score in pairs]

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
        image = np.ascontiguousarray(prediction.picture.pixels[..., ::-1])
        sample = prediction.sample.cpu()
        if self.kind == 'classifier':
            side = min(image.shape[:2])
            larger = dict(resize=_DRAWN_SIDE_PX) if side < _DRAWN_SIDE_PX else {}
            return self._visualizer.visualize_cls(image, sample, classes=self.classes, draw_gt=False, **larger)
        only_boxes = dict(pred_score_thr=min_score) if self.kind == 'detector' else {}
        self._visualizer.add_datasample('', image, sample, draw_gt=False, **only_boxes)
        return self._visualizer.get_image()


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


def _prepare(cfg: Config, library: str) -> Callable[[np.ndarray], np.ndarray]:
    """Change a config in place to what the library's inferencer expects; return `from_bgr` of its pipeline."""
    dataset = dataset_with_pipeline(cfg)
    if not dataset.get('pipeline'):
        raise ValueError('the config has no test_dataloader.dataset.pipeline, which prepares the images')
    cfg.test_dataloader.dataset = dataset  # without its wrappers
    convert = from_bgr(dataset.pipeline)
    for transform in dataset.pipeline:
        if str(transform.get('type')) == 'mmsb.LoadImage':
            transform.clear()
            transform.type = 'LoadImageFromFile'
    drop_warm_starts(cfg.model)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    others = ('name', 'save_dir', 'vis_backends')
    options = {key: value for key, value in (cfg.get('visualizer') or {}).items() if key not in others}
    cfg.visualizer = ConfigDict({'type': VISUALIZERS[library], **options})
    return convert


def _build(library: str, cfg: Config, checkpoint: str, device: str):
    init_default_scope(library)
    if library == 'mmpretrain':
        from mmpretrain.apis import ImageClassificationInferencer

        return ImageClassificationInferencer(cfg, checkpoint, device)
    if library == 'mmdet':
        from mmdet.apis import DetInferencer

        return DetInferencer(cfg, checkpoint, device)
    from mmseg.apis import MMSegInferencer

    return MMSegInferencer(cfg, checkpoint, device=device)


def _build_visualizer():
    from mmpretrain.visualization import UniversalVisualizer  # its inferencer has none from the start

    return UniversalVisualizer()


def _classes(cfg: Config, checkpoint: object, model) -> tuple[list[str], list]:
    """Find the names and colours of the classes; where nothing names a class, its number does."""
    given = class_names(cfg, checkpoint)
    number = _number_of_classes(model) or len(given)
    classes = [*given[:number], *map(str, range(len(given), number))]
    palettes = (one.get('palette') for one in dataset_meta(cfg, checkpoint))
    palette = next((list(one) for one in palettes if isinstance(one, (list, tuple)) and len(one) >= number), None)
    if palette is None:
        palette = np.random.RandomState(42).randint(32, 224, (number, 3)).tolist()
    return classes, [tuple(colour) for colour in palette[:number]]


def _number_of_classes(model) -> int | None:
    heads = (
        getattr(model, 'decode_head', None),
        getattr(getattr(model, 'roi_head', None), 'bbox_head', None),
        getattr(model, 'bbox_head', None),
        getattr(model, 'head', None),
    )
    for head in heads:
        head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
        if hasattr(head, 'num_classes'):
            return int(head.num_classes)
    return None
