"""Keeps MMDetection's coordinates in float32 under mixed precision.

Its RoI extractors cast the boxes to the dtype of the features, and its heads create anchors and points in the dtype of
the scores. This would shift boxes: the spacing of bfloat16 is 4 pixels above 512 and 8 above 1024, and that of float16
is half a pixel above 512. Here the features are cast to float32 instead and the result is cast back, and anchors and
points are float32.
"""

import functools
import inspect
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

import torch

from .precision import REDUCED


class PatchDetectors(MetaPathFinder):
    """Finds the MMDetection modules listed in `PATCHES`, and wraps the methods of their classes after loading."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name not in PATCHES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_patch(module) -> None:
                load(module)
                class_name, wrap, methods = PATCHES[name]
                cls = getattr(module, class_name)
                for method in methods:
                    setattr(cls, method, wrap(getattr(cls, method)))

            spec.loader.exec_module = load_and_patch
        return spec


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


PRIORS = ('grid_priors', 'single_level_grid_priors', 'sparse_priors')
PATCHES = {
    'mmdet.models.roi_heads.roi_extractors.base_roi_extractor': ('BaseRoIExtractor', extract_in_float32, ('__call__',)),
    'mmdet.models.task_modules.prior_generators.anchor_generator': ('AnchorGenerator', priors_in_float32, PRIORS),
    'mmdet.models.task_modules.prior_generators.point_generator': ('MlvlPointGenerator', priors_in_float32, PRIORS),
}
