"""Optimizers: bf16 without a loss scaler, on a CPU too; and one parameter group for all weights of equal settings."""

import contextlib

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner.amp import autocast

from mmsb.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """MMEngine's OptimWrapper, with the training step under bf16 autocast.

    Unlike `AmpOptimWrapper` it runs on a CPU and has no loss scaler: bf16 has the range of fp32. Weights, gradients and
    the states of the optimizer stay in fp32.
    """

    @contextlib.contextmanager
    def optim_context(self, model):
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroups(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, with one parameter group for all weights of equal settings.

    With `paramwise_cfg`, MMEngine makes a group for each parameter, so that a fused optimizer has one call for each.
    """

    def __call__(self, model) -> OptimWrapper:
        wrapper = super().__call__(model)
        merged: dict[str, dict] = {}
        for group in wrapper.optimizer.param_groups:
            parameters = group.pop('params')
            same = merged.setdefault(repr(sorted(group.items())), dict(params=[], **group))
            same['params'].extend(parameters)
        wrapper.optimizer.param_groups[:] = merged.values()
        return wrapper
