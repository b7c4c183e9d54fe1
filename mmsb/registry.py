"""The registries of mmsb, and the only place that lists the modules to search.

The config of any OpenMMLab library can name a type such as `mmsb.SBResNet` without `custom_imports`.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry
from mmengine.registry.build_functions import build_runner_from_cfg

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmsb', locations=['mmsb.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmsb', locations=['mmsb.engine'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='mmsb', locations=['mmsb.engine'])
OPTIM_WRAPPERS = Registry('optimizer wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='mmsb', locations=['mmsb.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmsb',
    locations=['mmsb.engine'],
)
RUNNERS = Registry(
    'runner', build_func=build_runner_from_cfg, parent=MMENGINE_RUNNERS, scope='mmsb', locations=['mmsb.engine']
)
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmsb', locations=['mmsb.datasets.cifar_arrays'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mmsb', locations=['mmsb.datasets.loading'])
