"""A config's test pipeline as a function of images: files are read by the config's own loading transform.

So orientation, colours, channels and numeric type are those of a test. Steps that load annotations are left out.
"""

import os
from collections.abc import Mapping

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from mmsb.datasets.loading import BadImageError, flaw_of, missing_pixels
from mmsb.datasets.paths import leaf_datasets
from mmsb.datasets.test_set import dataset_with_pipeline, loads_image, loads_rgb
from mmsb.options import one_line

_REMOTE = ('backend_args', 'file_client_args')  # of a loading transform: where the dataset's files are
_OVERSHOOT = 64  # what an interpolation may add to 8 bits


class ImagePipeline:
    """The test pipeline of a config, in two parts: load an image, and prepare it for the network.

    Attributes:
        rgb: whether what is loaded is RGB and not BGR: for a dataset of arrays such as CIFAR, whose pipeline has no
            step that loads a file (files are then loaded by `mmsb.LoadImage`), and by tifffile.

    Args:
        cfg: the config.
        channels: of the network's input; one makes files grey where the pipeline loads none.
        local: whether files are local, wherever the dataset of the config has its files.

    Raises:
        ValueError: the config has no test pipeline, or several.
    """

    def __init__(self, cfg: Config, *, channels: int = 3, local: bool = True):
        pipeline = _pipeline_of(cfg)
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        steps = [step for step in pipeline if 'Annotation' not in str(step.get('type'))]
        loading = [number for number, step in enumerate(steps, 1) if loads_image(step)]
        first, rest = (steps[: loading[-1]], steps[loading[-1] :]) if loading else ([], steps)
        self._loader = first[-1] if first else dict(color_type='grayscale' if channels == 1 else 'color')
        self._is_array = not first
        self.rgb = loads_rgb(pipeline)
        drop = _REMOTE if local else ()
        self._load = Compose(
            [{key: value for key, value in step.items() if key not in drop or value is None} for step in first]
            or [dict(type='mmsb.LoadImage', **self._loader)]
        )
        self._prepare = Compose(rest)

    def load(self, path: str | os.PathLike, *, whole: bool = True) -> dict:
        """Load an image file, as `img` of the results.

        Args:
            path: the file.
            whole: whether missing pixels are an error too, which decoders fill with grey.

        Raises:
            BadImageError: it can't be loaded; the line names the file.
        """
        path = os.fspath(path)
        flaw = missing_pixels(path) if whole else None
        if flaw:
            raise BadImageError(f'image {path!r} {flaw}')
        try:
            results = self._load(_sample(path))
        except BadImageError:
            raise
        except Exception as error:  # from any transform
            said = flaw_of(path) or f'cannot be loaded: {one_line(error)}'
            raise BadImageError(f'image {path!r} {said}') from error
        if results is None:  # a transform that skips images
            raise BadImageError(f'image {path!r} {flaw_of(path) or "cannot be loaded"}')
        if self._is_array and results['img'].ndim == 3:
            results['img'] = np.ascontiguousarray(results['img'][..., ::-1])
        return results

    def of_pixels(self, pixels: np.ndarray, path: str = '') -> dict:
        """Return the results that loading would give for an image in memory, [H, W, 3], 8-bit BGR."""
        image = pixels
        if str(self._loader.get('color_type', 'color')).startswith('grayscale'):
            image = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
        elif self.rgb:
            image = np.ascontiguousarray(pixels[..., ::-1])
        image = image.astype(np.float32) if self._loader.get('to_float32') else image
        return {**_sample(path), 'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}

    def prepare(self, results: dict) -> dict:
        """Prepare a loaded image for the network: its `inputs` and `data_samples`.

        Raises:
            ValueError: a step fails; the line names the file.
        """
        path = results['img_path']
        try:
            packed = self._prepare(dict(results))
            return dict(inputs=packed['inputs'], data_samples=packed['data_samples'])
        except Exception as error:  # from any transform
            reason = one_line(error)
            raise ValueError(f'image {path!r} does not pass the test pipeline of the config: {reason}') from error

    def shown(self, results: dict) -> np.ndarray:
        """Return a loaded image as one to look at, [H, W, 3], 8-bit BGR, a copy."""
        image = to_8_bit(results['img'])
        return np.ascontiguousarray(image[..., ::-1]) if self.rgb else image


def _pipeline_of(cfg: Config) -> list[Mapping]:
    key = 'test_dataloader.dataset'
    dataset = dataset_with_pipeline(cfg)
    sets = [dataset] if 'pipeline' in dataset else [leaf for _, leaf in leaf_datasets(dataset, key)]
    pipelines = [one.get('pipeline') for one in sets]
    if not all(pipelines):
        raise ValueError(f'the config has no {key}.pipeline, which prepares the images')
    if any(pipeline != pipelines[0] for pipeline in pipelines):
        raise ValueError(f'the {len(sets)} sets of {key} have pipelines that differ: give all the same one')
    return list(pipelines[0])


def _sample(path: str) -> dict:
    return dict(img_path=path, img_id=0, sample_idx=0, seg_fields=[])


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """Copy an image of any type and number of channels, [H, W] or [H, W, C], to 8 bits and three channels.

    Of more than three channels these are the first. Values far outside 0 to 255 are stretched to it, as of 16 bits.
    """
    image = image if image.ndim == 3 else image[..., None]
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)
    if image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float64))
        low, high = image.min(), image.max()
        if low < -_OVERSHOOT or high > 255 + _OVERSHOOT:
            image = (image - low) * (255 / ((high - low) or 1))
        image = np.rint(image).clip(0, 255)
    return np.array(image, np.uint8, order='C')
