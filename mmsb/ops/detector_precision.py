"""Keeps MMDetection's coordinates in float32 under mixed precision.

Its RoI extractors cast the boxes to the dtype of the features, and its heads create anchors and points in the dtype of
the scores. This would shift boxes: the spacing of bfloat16 is 4 pixels above 512 and 8 above 1024, and that of float16
is half a pixel above 512. With `install`, the features are cast to float32 instead and the result is cast back, and
anchors and points are float32. mmsb's commands call it; in a program of your own, call it before you train.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType

import torch

from mmsb.imports import after_import

from .precision import REDUCED


def extract_in_float32(call: Callable) -> Callable:
    """Wrap the `__call__` of a RoI extractor: (features, RoIs, ...) -> (R, C, h, w) in the dtype of the features."""

    @functools.wraps(call)
    def wrapped(self, feats, rois, *args, **kwargs):
        dtype = feats[0].dtype
        if dtype not in REDUCED:
            return call(self, feats, rois, *args, **kwargs)
        return call(self, tuple(feat.float() for feat in feats), rois.float(), *args, **kwargs).to(dtype)

    return wrapped


def priors_in_float32(method: Callable) -> Callable:
    """Wrap a method that creates anchors or points in a given `dtype`: use float32 instead of a reduced one."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def wrapped(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs)
        if arguments.arguments.get('dtype') in REDUCED:
            arguments.arguments['dtype'] = torch.float32
        return method(*arguments.args, **arguments.kwargs)

    return wrapped


def patch(class_name: str, wrap: Callable, methods: Sequence[str], module: ModuleType) -> None:
    """Wrap methods of a class of a module."""
    cls = getattr(module, class_name)
    for method in methods:
        setattr(cls, method, wrap(getattr(cls, method)))


PRIORS = ('grid_priors', 'single_level_grid_priors', 'sparse_priors')
PATCHED = {
    'mmdet.models.roi_heads.roi_extractors.base_roi_extractor': ('BaseRoIExtractor', extract_in_float32, ('__call__',)),
    'mmdet.models.task_modules.prior_generators.anchor_generator': ('AnchorGenerator', priors_in_float32, PRIORS),
    'mmdet.models.task_modules.prior_generators.point_generator': ('MlvlPointGenerator', priors_in_float32, PRIORS),
}
PATCHES = {name: functools.partial(patch, *arguments) for name, arguments in PATCHED.items()}


def install() -> None:
    """Patch the detectors in `PATCHED` once MMDetection has been imported; a second call does nothing."""
    after_import(PATCHES)
