"""Selective kernel: weight a 3x3 convolution and one of twice its dilation by a softmax for each channel.

Source: Li et al., "Selective Kernel Networks", arXiv:1903.06586, section 3.1; the block is timm's `SelectiveKernel`.
In SBResNet the block replaces only the 3x3 convolution, so the batch norm and ReLU of that convolution follow it: 2
parameters per channel more than in SKNet. The spatial bias paper counts this structure (27.49 M; timm's
`skresnext50_32x4d` has 27.48 M).
"""

from torch import Tensor, nn

from mmsb.models.context.library import check_batch, plain_norms, reduced_channels
from mmsb.options import choose, known_options
from mmsb.registry import MODELS

_MIN_CHANNELS = 32  # L in the paper


@MODELS.register_module()
class SK(nn.Module):
    """Two grouped 3x3 convs of dilation d and 2d, each with norm and ReLU; their weighted sum, channel by channel.

    Weights: global mean of the sum of both, 1x1 conv to max(C / ratio, 32), norm, ReLU, 1x1 conv to 2C, softmax over
    the two. The constructor is that of a convolution: the residual block passes every argument except `ratio`.

    Args:
        in_channels: channels of the input.
        out_channels: C.
        kernel_size: must be 3.
        stride: stride of both convolutions.
        padding: must equal dilation.
        dilation: d.
        groups: groups of both convolutions.
        bias: must be False.
        ratio: channel reduction ratio.

    Raises:
        ValueError: if the geometry is unsupported, the ratio leaves no channel, or a training batch has one image.
    """

    @known_options
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        ratio: int = 16,
    ):
        from timm.layers import SelectiveKernel  # importing timm takes seconds

        super().__init__()
        choose('kernel_size of SK', kernel_size, (3,))
        choose('padding of SK', padding, (dilation,))
        choose('bias of SK', bias, (False,))
        self.block = plain_norms(
            SelectiveKernel(
                in_channels,
                out_channels,
                stride=stride,
                dilation=dilation,
                groups=groups,
                rd_channels=reduced_channels('SK', out_channels, ratio, _MIN_CHANNELS),
                split_input=False,
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C, H', W')."""
        check_batch('SK', self.block.attn.bn, len(x))
        return self.block(x)
