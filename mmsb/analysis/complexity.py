"""Parameters and operations of a network, counted on the meta device: no memory, no arithmetic, no weights.

Operations in the paper's convention (`ops`) are multiply-adds of convolutions and linear layers, two for each
multiply-add of a product of two activations (attention), two for each output element of a batch norm, and what pooling
and upsampling do: one for each element that a pooling window reads and one for its division, three for each element of
a variance, eleven for each upsampled element. Pure multiply-adds (`macs`) stand beside them.

Two for a product of activations: no other count meets the paper's 7660 M for NL (table 9). Its five blocks have 747 M
multiply-adds in such products, and the network 6170 M operations without them: 6170 + 2 x 747 = 7664.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten
_BILINEAR_OPS = 11  # four products, three sums, and four differences for the weights


@dataclass(frozen=True)
class Complexity:
    """Counts for one image.

    Attributes:
        params: parameters.
        macs: multiply-adds of convolutions and matrix products.
        ops: operations in the paper's convention.
    """

    params: int
    macs: int
    ops: int


def _batch_norm(x_shape, *_, **__) -> int:
    return 2 * math.prod(x_shape)


def _adaptive_pool(x_shape, *_, out_shape, **__) -> int:
    out_shape = out_shape[0] if isinstance(out_shape[0], (tuple, list, torch.Size)) else out_shape
    window = math.prod(math.ceil(i / o) for i, o in zip(x_shape[-2:], out_shape[-2:], strict=True))
    return (window + 1) * math.prod(out_shape)


def _global_mean(x_shape, *_, out_shape, **__) -> int:
    return math.prod(x_shape) + math.prod(out_shape)


def _variance_and_mean(x_shape, *_, **__) -> int:
    return 4 * math.prod(x_shape)


def _upsample(*_, out_shape, **__) -> int:
    return _BILINEAR_OPS * math.prod(out_shape)


_OTHER_OPS = {
    _aten.native_batch_norm: _batch_norm,
    _aten._native_batch_norm_legit_no_training: _batch_norm,
    _aten.cudnn_batch_norm: _batch_norm,
    _aten._adaptive_avg_pool2d: _adaptive_pool,
    _aten.adaptive_max_pool2d: _adaptive_pool,
    _aten.mean: _global_mean,
    _aten.var_mean: _variance_and_mean,
    _aten.upsample_bilinear2d: _upsample,
}
_PRODUCTS_OF_ACTIVATIONS = (_aten.bmm, _aten.baddbmm)


def count(model: nn.Module, input_shape: tuple[int, int, int]) -> Complexity:
    """Count one forward pass of a network on one image of shape (channels, height, width) in pixels.

    Args:
        model: called with a batch of images; moved to the meta device (its weights are lost: hand in a network of its
            own).
        input_shape: of the image.
    """
    model = model.to('meta').eval()
    counter = FlopCounterMode(display=False, custom_mapping=_OTHER_OPS)
    with counter, torch.no_grad():
        model(torch.empty(1, *input_shape, device='meta'))
    counts = counter.get_flop_counts()['Global']
    other = sum(number for op, number in counts.items() if op in _OTHER_OPS)
    macs = (sum(counts.values()) - other) // 2
    products = sum(counts.get(op, 0) for op in _PRODUCTS_OF_ACTIVATIONS) // 2
    return Complexity(sum(p.numel() for p in model.parameters()), macs, macs + products + other)
