"""Global context: one vector, computed from an attention-weighted mean over all positions, is added to each of them.

Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", arXiv:1904.11492, equation
4; the block is mmcv's `ContextBlock`.
"""

from mmcv.cnn import ContextBlock

from mmsb.models.context.library import reduced_channels
from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class GC(ContextBlock):
    """Softmax over all positions of a 1x1 conv to one map; mean weighted by it; 1x1 conv to C / ratio, layer norm,
    ReLU, 1x1 conv to C; sum.

    The last convolution starts at zero: at first the block changes nothing.

    Args:
        in_channels: C.
        ratio: the reduction.

    Raises:
        ValueError: for a ratio that leaves no channel.
    """

    _abbr_ = 'gc'  # its name in a block

    @known_options
    def __init__(self, in_channels: int, *, ratio: int = 16):
        planes = reduced_channels('GC', in_channels, ratio)
        super().__init__(in_channels, ratio=(planes + 0.5) / in_channels)  # mmcv rounds the product down

    def init_weights(self) -> None:
        """Set what mmcv sets; a network around it may have overwritten it."""
        self.reset_parameters()
