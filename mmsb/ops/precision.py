"""Runs operations in float32 under automatic mixed precision."""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

REDUCED = (torch.float16, torch.bfloat16)


def in_float32(*outputs: str) -> Callable[[Callable], Callable]:
    """Decorate an operation to run without autocast, with float16 and bfloat16 tensors cast to float32.

    torchvision's kernels do not support bfloat16, or float16 on a CPU. In plain PyTorch, autocast would round
    intermediate results. What an operation returns has the dtype of its first tensor, unless it is indices.

    Args:
        outputs: names of the arguments that the operation writes to; they keep their dtype.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            values = bound.arguments
            given = {name: values[name] for name in outputs}
            tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
            for name, value in tensors.items():
                if value.dtype in REDUCED and value.numel():  # mmcv passes empty tensors for missing arguments
                    values[name] = value.float()
            first = next(iter(tensors.values()))
            with torch.autocast(first.device.type, enabled=False):
                result = function(*bound.args, **bound.kwargs)
            if isinstance(result, Tensor) and result.is_floating_point():
                result = result.to(first.dtype)
            for name, value in given.items():
                if values[name] is not value:
                    value.copy_(values[name])
            return result

        return wrapped

    return decorate
