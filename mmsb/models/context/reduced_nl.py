"""Reduced non-local block: the non-local term of average-pooled features, upsampled and added at full size.

Source: Go & Ryu, "Spatial Bias for Attention-free Non-local Neural Networks", arXiv:2302.12505, table 10.
The paper does not specify the upsampling; it is bilinear here, as in its spatial bias.
"""

import torch.nn.functional as F
from torch import Tensor

from mmsb.models.context.nl import NL
from mmsb.models.resizing import adaptive_pool2d
from mmsb.options import known_options, positive_integer
from mmsb.registry import MODELS


@MODELS.register_module()
class ReducedNL(NL):
    """Average pool to S x S; the non-local term of NL; bilinear upsampling; sum.

    Args:
        in_channels: C.
        pool_size: S.
        ratio: as in NL.
        norm_cfg: as in NL.

    Raises:
        ValueError: if the pool size is below 1, or the ratio leaves no channel.
    """

    _abbr_ = 'reduced_nl'  # its name in a block

    @known_options
    def __init__(self, in_channels: int, *, pool_size: int = 10, ratio: int = 2, norm_cfg: dict | None = None):
        positive_integer('pool_size of ReducedNL', pool_size)
        super().__init__(in_channels, ratio=ratio, norm_cfg=norm_cfg)
        self.pool_size = pool_size

    def forward(self, x: Tensor) -> Tensor:
        """Add the non-local term to `x`, (B, C, H, W)."""
        pooled = adaptive_pool2d(x, self.pool_size)
        theta, phi = self.theta(pooled).flatten(2), self.phi(pooled).flatten(2)  # (B, C / ratio, S*S)
        weights = self.embedded_gaussian(theta.transpose(1, 2), phi)  # (B, S*S, S*S)
        term = weights @ self.g(pooled).flatten(2).transpose(1, 2)  # (B, S*S, C / ratio)
        term = term.transpose(1, 2).unflatten(2, (self.pool_size, self.pool_size))
        return x + F.interpolate(self.conv_out(term), size=x.shape[-2:], mode='bilinear', align_corners=False)
