"""Which form of an exact computation runs where, and what decided it: the only place with cases of devices.

All forms of a row compute the same, up to rounding (`tests/models/test_forms.py`). `python -m benchmarks.forms`
measures each, forward and backward, eager and compiled, on any device; docs/speed.md shows what it found.

| computation | form | what it is |
|---|---|---|
| pool | kernel | PyTorch's adaptive pooling |
| | matrix | two matrix products, of whose sizes a compiler needs one graph; deterministic, but 28 operations more |
| upsample | kernel | PyTorch's bilinear interpolation |
| | matrix | two matrix products; a backward pass without atomic additions |
| read | concat | the features and the N maps concatenated, and one convolution |
| | padded | the same, with maps of zeros up to a multiple of 8 channels, as tensor cores like it |
| | sum | the sum of two convolutions |
| maps | weights | batch norms of the maps in NCHW and in the type of the weights, also under autocast |
| | features | in the memory format and the type of the features; with another, a compiler makes a graph for each size |
| gradients | views | of a concatenation in channels_last: views of some channels |
| | copied | copies of them |
"""

import torch
from torch import Tensor, fx

FORMS = {
    'pool': ('kernel', 'matrix'),
    'upsample': ('kernel', 'matrix'),
    'read': ('concat', 'padded', 'sum'),
    'maps': ('weights', 'features'),
    'gradients': ('views', 'copied'),
}
PLACES = ('cpu', 'cpu compiled', 'gpu', 'gpu deterministic', 'gpu compiled', 'exported')
# Figures: time over that of the form that ran, forward and backward, eager and then compiled, on a CPU in bf16 and
# channels_last (median of seven sizes, smallest to largest; benchmarks/results/forms-cpu.md has all). On a GPU nothing
# has been measured, and the plainest form stands; where deterministic algorithms are asked for, the plainest that has
# them.
TABLE = {
    # matrix 1.03 (0.94 to 1.32), but compiled one graph for all sizes, for which the kernel's 0.94 (0.86 to 1.09) goes
    'pool': dict(zip(PLACES, ('kernel', 'matrix', 'kernel', 'matrix', 'matrix', 'matrix'), strict=True)),
    # kernel 1.05 (0.76 to 1.41); compiled, matrix 0.81 (0.48 to 1.08), and 0.98 in fp32
    'upsample': dict(zip(PLACES, ('matrix', 'kernel', 'kernel', 'matrix', 'kernel', 'kernel'), strict=True)),
    # padded 1.01 (0.99 to 1.09) and 1.01 (0.98 to 1.26); sum 1.12 (0.91 to 1.65) and 1.12 (1.06 to 1.40): onnxruntime
    # computes in blocks of channels, in which 3 more do not fit
    'read': dict(zip(PLACES, ('concat', 'concat', 'concat', 'concat', 'concat', 'sum'), strict=True)),
    # features 0.98 (0.91 to 1.36), the largest in a ResNet-38; compiled, either takes as long: 1.00 (0.97 to 1.04)
    'maps': dict(zip(PLACES, ('weights', 'features', 'features', 'features', 'features', 'weights'), strict=True)),
    # views 0.99 (0.95 to 1.58), the largest in a ResNet-38; compiled, copied 1.01 (0.99 to 1.03)
    'gradients': dict(zip(PLACES, ('copied', 'views', 'views', 'views', 'views', 'views'), strict=True)),
}


def form_of(computation: str, x: Tensor) -> str:
    """Return the form of a computation, a row of the table, on a tensor."""
    if is_exporting():
        return TABLE[computation]['exported']
    # a symbol is on no device yet; on the meta device operations are only counted
    device = 'cpu' if isinstance(x, fx.Proxy) or x.device.type in ('cpu', 'meta') else 'gpu'
    if device == 'gpu' and torch.are_deterministic_algorithms_enabled():
        return TABLE[computation]['gpu deterministic']
    return TABLE[computation][f'{device} compiled' if is_compiling() else device]


def is_exporting() -> bool:
    """Return whether torch.export is at work; PyTorch before 2.6 can't tell, and exports one size."""
    return getattr(torch.compiler, 'is_exporting', bool)()


def is_compiling() -> bool:
    """Return whether torch.compile or torch.export is at work."""
    compiler = torch.compiler if hasattr(torch.compiler, 'is_compiling') else torch._dynamo  # torch < 2.3
    return compiler.is_compiling() or is_exporting()
