"""Pictures of predictions: drawn by the library's own visualizer, and named by the file that they show."""

import os
import warnings
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS

from mmsb.files import write_whole

VISUALIZERS = {'mmpretrain': 'UniversalVisualizer', 'mmdet': 'DetLocalVisualizer', 'mmseg': 'SegLocalVisualizer'}
_SIDE_PX = 256  # shorter side below which an image is enlarged to take the text of its class


def build_visualizer(cfg: Config, dataset_meta: dict):
    """Build the visualizer of a config, else that of its library, without what it would write to.

    Args:
        cfg: the config.
        dataset_meta: the `classes`, and the `palette` of their colours.
    """
    others = ('name', 'save_dir', 'vis_backends')
    options = {key: value for key, value in (cfg.get('visualizer') or {}).items() if key not in others}
    kind, scope = options.pop('type', VISUALIZERS[cfg.default_scope]), options.pop('_scope_', cfg.default_scope)
    if isinstance(kind, str):
        kind = MMENGINE_VISUALIZERS.get(kind if '.' in kind else f'{scope}.{kind}')
    visualizer = kind(**options)
    visualizer.dataset_meta = dataset_meta
    return visualizer


def draw(visualizer, image: np.ndarray, sample, **options) -> np.ndarray:
    """Draw a prediction over its image.

    Args:
        visualizer: one of VISUALIZERS.
        image: [H, W, 3], 8-bit BGR.
        sample: the library's data sample.
        options: of the visualizer's method, such as draw_gt; of a detector also pred_score_thr.

    Returns:
        [H, W, 3], 8-bit RGB.
    """
    image, sample = np.ascontiguousarray(image[..., ::-1]), sample.cpu()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that a box touches the border
        if hasattr(visualizer, 'visualize_cls'):
            larger = dict(resize=_SIDE_PX) if min(image.shape[:2]) < _SIDE_PX else {}
            return visualizer.visualize_cls(image, sample, **{**larger, **options})
        visualizer.add_datasample('', image, sample, **options)
    return visualizer.get_image()


class Names:
    """Names of pictures, without suffix, each once: where a file lies below the folder that all of them share.

    Args:
        paths: all files of a run.
    """

    def __init__(self, paths: Iterable[str]):
        folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
        self._root = os.path.commonpath(folders) if folders else os.sep
        self._taken: set[str] = set()

    def choose(self, path: str, more: str = '') -> str:
        """Choose a name for the picture of a file; `more` tells the pictures of one file apart."""
        place = Path(os.path.abspath(path))
        place = place.relative_to(self._root if place.is_relative_to(self._root) else place.anchor)
        stem = str(place.with_suffix('')) + more
        others = (f'{stem}_{more}' for more in chain([place.suffix[1:]], count(2)))  # 'a.bmp' beside 'a.png': 'a_bmp'
        name = next(name for name in chain([stem], others) if name not in self._taken)
        self._taken.add(name)
        return name


def suffix_of(path: str, frame: int | None = None) -> str:
    """Choose the format of the picture of a file: that of a lossy one is lossy too."""
    lossy = Path(path).suffix.lower() in ('.jfif', '.jpe', '.jpeg', '.jpg') or frame is not None
    return '.jpg' if lossy else '.png'


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write an image, [H, W, 3], 8-bit RGB, whole; make the folders around it."""
    done, content = cv2.imencode(path.suffix, image[..., ::-1])
    assert done, f'OpenCV has no encoder for {path.name}'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda unfinished: unfinished.write_bytes(content.tobytes()))
