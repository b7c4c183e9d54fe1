"""The registries of mmsb: the only place that knows where its parts are.

A type written as `mmsb.SBResNet` is found from the configs of every OpenMMLab library, without `custom_imports`.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmsb', locations=['mmsb.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmsb', locations=['mmsb.engine'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmsb', locations=['mmsb.datasets.cifar_arrays'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mmsb', locations=['mmsb.datasets.loading'])
