"""Non-local block: each position adds a weighted mean over all positions, weighted by a softmax of dot products.

Source: Wang et al., "Non-local Neural Networks", arXiv:1711.07971, equations 1, 4 and 6, embedded Gaussian; the block
is mmcv's `NonLocal2d`. Differs from the paper: the dot products are divided by the root of the inner width, as in the
authors' code. Differs from mmcv: the output projection keeps its bias beside the batch norm, as the others have one
(32.92 M in the table of spatial bias; without it 32.91 M).
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

    The scale of the norm starts at zero: at first the block changes nothing.

    Args:
        in_channels: C.
        ratio: the reduction.
        norm_cfg: norm of the output projection; None: batch norm.

    Raises:
        ValueError: for a ratio that leaves no channel.
    """

    _abbr_ = 'nl'  # its name in a block

    @known_options
    def __init__(self, in_channels: int, *, ratio: int = 2, norm_cfg: dict | None = None):
        reduced_channels('NL', in_channels, ratio)
        super().__init__(in_channels, reduction=ratio, norm_cfg=norm_cfg or dict(type='BN'))
        self.conv_out.conv.bias = nn.Parameter(torch.zeros(in_channels))
