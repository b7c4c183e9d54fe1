"""Count the parameters and operations of a network on the meta device: no memory, no arithmetic, no weights.

In the paper's convention, operations (`ops`) are the sum of:
* one for each multiply-add of a convolution or linear layer;
* two for each multiply-add of a product of two activations (attention);
* two for each output element of a batch norm;
* one for each element that a pooling window reads, and one for its division;
* three for each element of a variance;
* eleven for each upsampled element.
Pure multiply-adds (`macs`) are counted separately.

Products of activations count two because only this matches the paper's 7660 M for NL (table 9). Its five blocks have
747 M multiply-adds in such products, and the network has 6170 M operations without them: 6170 + 2 x 747 = 7664.

Activations are the elements of the outputs of convolutions (Radosavovic et al., "Designing Network Design Spaces",
arXiv:2003.13678; pycls). Differs from pycls's code, which also counts the outputs of max pools and of the classifier.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

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
        activations: elements of the outputs of convolutions.
    """

    params: int
    macs: int
    ops: int
    activations: int

    def __sub__(self, other: 'Complexity') -> 'Complexity':
        return Complexity(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


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
_PRODUCTS_OF_ACTIVATIONS = (_aten.bmm, _aten.baddbmm, _aten.addbmm)


def _matrix_vector(a_shape, *_, **__) -> int:
    return 2 * math.prod(a_shape)


def _plus_matrix_vector(_, a_shape, *__, **___) -> int:
    return 2 * math.prod(a_shape)


def _plus_sum_of_products(_, a_shape, b_shape, **__) -> int:
    return 2 * math.prod(a_shape) * b_shape[-1]


# Products that PyTorch's counter omits; like PyTorch, count two for each multiply-add.
_MORE_PRODUCTS = {
    _aten.mv: _matrix_vector,
    _aten.dot: _matrix_vector,
    _aten.vdot: _matrix_vector,
    _aten.addmv: _plus_matrix_vector,
    _aten.addbmm: _plus_sum_of_products,
}


def _output_size(*_, out_shape, **__) -> int:
    return math.prod(out_shape)


_CONVOLUTIONS = {_aten.convolution: _output_size, _aten._convolution: _output_size}


def count(model: nn.Module, input_shape: tuple[int, int, int]) -> Complexity:
    """Count one forward pass of a network on one image of shape (channels, height, width) in pixels.

    Args:
        model: called with a batch of images. It is moved to the meta device and loses its weights, so pass a network
            that is not needed afterwards.
        input_shape: shape of the image.
    """
    return count_parts(model, input_shape)['']


def count_parts(
    model: nn.Module, input_shape: tuple[int, int, int], parts: Iterable[str] = ()
) -> dict[str, Complexity]:
    """Count a network and some of its modules, as `count` does.

    Args:
        model: as in `count`.
        input_shape: as in `count`.
        parts: names of modules. A module's counts exclude the computation of its inputs elsewhere.

    Returns:
        The counts by module name; the empty name is the whole network.
    """
    model = model.to('meta').eval()
    products = FlopCounterMode(display=False, custom_mapping=_OTHER_OPS | _MORE_PRODUCTS)
    outputs = FlopCounterMode(display=False, custom_mapping=_CONVOLUTIONS)

    def so_far() -> Counter:
        counts = products.get_flop_counts().get('Global', {})
        other = sum(counts.get(op, 0) for op in _OTHER_OPS)
        macs = (sum(counts.values()) - other) // 2
        sizes = outputs.get_flop_counts().get('Global', {})
        return Counter(
            macs=macs,
            ops=macs + sum(counts.get(op, 0) for op in _PRODUCTS_OF_ACTIVATIONS) // 2 + other,
            activations=sum(sizes.get(op, 0) for op in _CONVOLUTIONS),
        )

    modules = {'': model, **{name: model.get_submodule(name) for name in parts}}
    totals = {name: Counter(macs=0, ops=0, activations=0) for name in modules}
    hooks = []
    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(lambda *_, total=totals[name]: total.subtract(so_far())))
        hooks.append(module.register_forward_hook(lambda *_, total=totals[name]: total.update(so_far())))
    with products, outputs, torch.no_grad():
        model(torch.empty(1, *input_shape, device='meta'))
    for hook in hooks:
        hook.remove()
    params = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return {name: Complexity(params=params[name], **total) for name, total in totals.items()}
