"""Global context: add one vector, computed from an attention-weighted mean over all positions, to each position.

Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", arXiv:1904.11492, equation
4; the block is mmcv's `ContextBlock`.
"""

from mmcv.cnn import ContextBlock

from mmsb.models.context.library import reduced_channels
from mmsb.options import known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class GC(ContextBlock):
    """1x1 conv to one map; softmax over its positions; mean weighted by it; 1x1 conv to C / ratio, layer norm, ReLU,
    1x1 conv to C; sum.

    The last convolution is initialised to zero, so the block starts as the identity.

    Args:
        in_channels: C.
        ratio: channel reduction ratio.

    Raises:
        ValueError: if the ratio leaves no channel.
    """

    _abbr_ = 'gc'  # its name in a block

    @known_options
    def __init__(self, in_channels: int, *, ratio: int = 16):
        planes = reduced_channels('GC', in_channels, ratio)
        super().__init__(in_channels, ratio=(planes + 0.5) / in_channels)  # mmcv rounds the product down

    def init_weights(self) -> None:
        """Restore mmcv's initial values, which the enclosing network may have overwritten."""
        self.reset_parameters()
