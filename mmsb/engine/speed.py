"""The hook behind `channels_last`, `compile_parts` and fused optimizers."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmsb.registry import HOOKS

from .fast import reason_of


@HOOKS.register_module()
class SpeedHook(Hook):
    """Put the network into the memory format, and compile the parts, that the config names.

    Reads the keys `channels_last`, `compile_parts` and `compile_dynamic` of the config. Checkpoints are as without the
    hook: contiguous, and not fused. A fused optimizer reads weights, gradients and momentum in the order of memory, so
    their formats must agree: PyTorch does not check it on a CPU.
    """

    priority = 'LOWEST'  # saves what the other hooks have put into the checkpoint

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if runner.cfg.get('channels_last'):
            model.to(memory_format=torch.channels_last)
            model.data_preprocessor.register_forward_hook(_to_channels_last)
            if is_model_wrapper(runner.model):  # DDP of another format than its weights mixes up their first gradients
                runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        for optimizer in _optimizers(runner):
            _restore(optimizer)
        for name in runner.cfg.get('compile_parts') or ():
            _compile(getattr(model, name), dynamic=bool(runner.cfg.get('compile_dynamic')), name=name)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        saved = checkpoint.get('optimizer') or {}
        wrapper = runner.optim_wrapper
        if not runner._resume or 'param_groups' not in saved or not isinstance(wrapper, OptimWrapper):
            return
        then, now = len(saved['param_groups']), len(wrapper.optimizer.param_groups)
        if then != now:
            kind = 'mmsb.MergedGroups' if then < now else 'DefaultOptimWrapperConstructor'
            raise ValueError(
                f'the checkpoint has {then} parameter groups, and this run {now}: to resume it, pass '
                f'--cfg-options optim_wrapper.constructor={kind}'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        for key in ('state_dict', 'ema_state_dict'):
            weights = checkpoint.get(key, {})
            for name, value in weights.items():
                if isinstance(value, Tensor):
                    weights[name] = value.contiguous()
        saved = checkpoint.get('optimizer')
        for state in [saved, *(saved or {}).values()] if isinstance(saved, dict) else []:
            if isinstance(state, dict) and {'state', 'param_groups'} <= set(state):
                _make_stock(state)


def _to_channels_last(_module: nn.Module, _args: tuple, data: dict) -> dict:
    """Convert the images (B, 3, H, W) that the data preprocessor returns; a forward hook."""
    images = data.get('inputs') if isinstance(data, dict) else None
    if isinstance(images, Tensor) and images.dim() == 4:
        data['inputs'] = images.contiguous(memory_format=torch.channels_last)
    return data


def _optimizers(runner: Runner) -> Iterator[torch.optim.Optimizer]:
    wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', {'': runner.optim_wrapper})
    for wrapper in wrappers.values():
        yield wrapper.optimizer


def _restore(optimizer: torch.optim.Optimizer) -> None:
    """Undo `_make_stock` after a resume: fused as configured, each state in the memory format of its weight."""
    for group in optimizer.param_groups:
        if 'fused' in optimizer.defaults:
            group['fused'] = optimizer.defaults['fused']
        for weight in group['params']:
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                    state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _make_stock(saved: dict) -> None:
    """Make the saved state of an optimizer independent of the memory format, and of whether it was fused."""
    saved['state'] = {
        index: {name: value.contiguous() if isinstance(value, Tensor) else value for name, value in state.items()}
        for index, state in saved['state'].items()
    }
    for group in saved['param_groups']:
        if 'fused' in group:
            group['fused'] = None


def _compile(part: nn.Module, *, dynamic: bool, name: str = 'part') -> None:
    """Compile the training forward of a part, as one graph; its evaluation stays eager, in fp32.

    A part that cannot be compiled as one graph stays eager from then on, and the log says so: a compiler's failure ends
    no training that would run without it.
    """
    eager = part.forward
    # To choose the memory format of a convolution's backward pass by itself, the compiler would read the sizes of the
    # images, and make a graph for each.
    options = dict(force_layout_optimization=True) if dynamic else None
    compiled = torch.compile(eager, dynamic=dynamic, fullgraph=True, options=options)
    known = ('TorchDynamoException', 'FailOnRecompileLimitHit')  # the second is not in every PyTorch
    failures = tuple(getattr(torch._dynamo.exc, one) for one in known if hasattr(torch._dynamo.exc, one))
    works = True

    def forward(*args, **kwargs):
        nonlocal works
        if part.training and works:
            try:
                with _backward_at_once():
                    return compiled(*args, **kwargs)
            except failures as error:
                works = False
                text = f'{name} cannot be compiled as one graph, and stays eager: {reason_of(error)}'
                print_log(text, 'current', logging.WARNING)
        return eager(*args, **kwargs)

    part.forward = forward


def _backward_at_once() -> contextlib.AbstractContextManager:
    """Compile the backward pass together with the forward pass, where this PyTorch can: then it fails there too."""
    from torch._functorch import config  # takes a second

    option = 'force_non_lazy_backward_lowering'
    return config.patch(**{option: True}) if hasattr(config, option) else contextlib.nullcontext()
