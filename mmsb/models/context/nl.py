"""Non-local block: add to each position a mean over all positions, weighted by a softmax of dot products.

Source: Wang et al., "Non-local Neural Networks", arXiv:1711.07971, equations 1, 4 and 6, embedded Gaussian; the block
is mmcv's `NonLocal2d`. Differs from the paper: the dot products are divided by the square root of the inner width, as
in the authors' code. Differs from mmcv: the output projection has a bias in addition to its batch norm, like the other
projections (32.92 M parameters in the spatial bias paper; without it 32.91 M).
"""

import torch
from mmcv.cnn import NonLocal2d
from torch import nn

from mmsb.models.context.library import reduced_channels
from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class NL(NonLocal2d):
    """1x1 convs theta, phi and g to C / ratio; softmax(theta phi^T / sqrt(C / ratio)) g; 1x1 conv to C, norm; sum.

    The scale of the norm is initialised to zero, so the block starts as the identity.

    Args:
        in_channels: C.
        ratio: channel reduction ratio.
        norm_cfg: norm of the output projection; None means batch norm.

    Raises:
        ValueError: if the ratio leaves no channel.
    """

    _abbr_ = 'nl'  # its name in a block

    @known_options
    def __init__(self, in_channels: int, *, ratio: int = 2, norm_cfg: dict | None = None):
        reduced_channels('NL', in_channels, ratio)
        super().__init__(in_channels, reduction=ratio, norm_cfg=norm_cfg or dict(type='BN'))
        self.conv_out.conv.bias = nn.Parameter(torch.zeros(in_channels))
