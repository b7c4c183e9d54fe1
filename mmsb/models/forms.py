"""Which form of an exact computation runs where, and what decided it: the only place with cases of devices.

All forms of a row compute the same, up to rounding (`tests/models/test_forms.py`). `python -m benchmarks.forms`
measures each, forward and backward, eager and compiled, on any device; docs/speed.md shows what it found.

| computation | form | what it is |
|---|---|---|
| pool | kernel | PyTorch's adaptive pooling |
| | matrix | two matrix products, of whose sizes a compiler needs one graph; deterministic on a GPU too |
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

PLACES = ('cpu', 'cpu compiled', 'gpu', 'gpu compiled', 'exported')
# On a CPU, figures decided: matrices upsample 3 to 5 times as fast, forward and backward; a batch norm of 5 channels
# takes twice as long in channels_last, and pooling back in bf16 four times as long as in fp32; the backward pass of a
# ReLU takes ten times as long on a view of some channels. On a GPU nothing has been measured: there stands the plainest
# form that is deterministic. A compiler fuses the kernel of the upsampling with its neighbours, but makes a graph for
# each size of the kernel that pools. An exporter writes that kernel for one size only; and onnxruntime computes in
# blocks of channels, in which 3 more do not fit.
TABLE = {
    'pool': dict(zip(PLACES, ('kernel', 'matrix', 'matrix', 'matrix', 'matrix'), strict=True)),
    'upsample': dict(zip(PLACES, ('matrix', 'kernel', 'matrix', 'kernel', 'kernel'), strict=True)),
    'read': dict(zip(PLACES, ('concat', 'concat', 'concat', 'concat', 'sum'), strict=True)),
    'maps': dict(zip(PLACES, ('weights', 'features', 'features', 'features', 'weights'), strict=True)),
    'gradients': dict(zip(PLACES, ('copied', 'views', 'views', 'views', 'views'), strict=True)),
}


def form_of(computation: str, x: Tensor) -> str:
    """Return the form of a computation, a row of the table, on a tensor."""
    if is_exporting():
        return TABLE[computation]['exported']
    device = 'cpu' if isinstance(x, fx.Proxy) or x.device.type == 'cpu' else 'gpu'  # a symbol is on no device yet
    return TABLE[computation][f'{device} compiled' if is_compiling() else device]


def is_exporting() -> bool:
    """Return whether torch.export is at work; PyTorch before 2.6 can't tell, and exports one size."""
    return getattr(torch.compiler, 'is_exporting', bool)()


def is_compiling() -> bool:
    """Return whether torch.compile or torch.export is at work."""
    compiler = torch.compiler if hasattr(torch.compiler, 'is_compiling') else torch._dynamo  # torch < 2.3
    return compiler.is_compiling() or is_exporting()
