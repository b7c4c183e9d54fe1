"""Keeps regions of interest in float32 under mixed precision.

MMDetection's RoI extractors cast the boxes to the type of the features. A step of bfloat16 is 4 pixels above 512 and 8
above 1024, one of float16 half a pixel above 512: boxes would move. Here the features are cast instead, and what was
extracted is cast back. torchvision has no RoIAlign in these types on a CPU anyway.
"""

import functools
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

from .precision import REDUCED

BASE_MODULE = 'mmdet.models.roi_heads.roi_extractors.base_roi_extractor'


class PatchRoIExtractor(MetaPathFinder):
    """Finds the module of MMDetection's base RoI extractor and wraps the class once the module is loaded."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != BASE_MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_wrap(module) -> None:
                load(module)
                module.BaseRoIExtractor.__call__ = extract_in_float32(module.BaseRoIExtractor.__call__)

            spec.loader.exec_module = load_and_wrap
        return spec


def extract_in_float32(call):
    """Wrap the `__call__` of a RoI extractor: (features, RoIs, ...) -> (R, C, h, w) in the type of the features."""

    @functools.wraps(call)
    def wrapped(self, feats, rois, *args, **kwargs):
        dtype = feats[0].dtype
        if dtype not in REDUCED:
            return call(self, feats, rois, *args, **kwargs)
        return call(self, tuple(feat.float() for feat in feats), rois.float(), *args, **kwargs).to(dtype)

    return wrapped
