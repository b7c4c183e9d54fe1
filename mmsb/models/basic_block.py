"""The basic block: 3x3, norm, act, 3x3, norm, plus the shortcut, act; and the slots of `ResidualBlock`.

Source: He et al., "Deep Residual Learning for Image Recognition", with torchvision's names.

The paper has spatial bias in bottlenecks only. In a bottleneck the maps stand beside conv2, the convolution with the
block's reach, and the convolution that follows in the same block reads them. The only convolution of a basic block
that another one follows is conv1, so the maps stand beside conv1, made of the block's input, and conv2 reads them.
That is the paper's variant "after conv1". Beside conv2 they could only widen the sum with the shortcut, which has no
channels for them.

| slot | contract |
|---|---|
| spatial_bias | reads the input of conv1, adds N maps behind its output |
| after_conv1, after_conv2 | (B, C, H, W) -> the same |
| after_block | (B, C, H, W) -> the same |

Shapes: B batch, C_in and C channels, N maps; H x W at the input, H1 x W1 behind conv1.
"""

from collections.abc import Mapping, Sequence

from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from mmsb.models.bottleneck import ResidualBlock
from mmsb.options import choose


class BasicBlock(ResidualBlock):
    """One residual block of two 3x3 convolutions, with slots.

    The arguments are those of `Bottleneck`. Those of its 3x3 convolution between two 1x1 must have their defaults:
    `groups`, `width`, `conv2`, `style`. `dilation` is that of conv1, as in the libraries.

    Raises:
        ValueError: for an unknown option or position, and for what only a bottleneck has.
    """

    expansion = 1
    convs = ('conv1', 'conv2')

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        expansion: int = expansion,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        width: int | None = None,
        downsample: nn.Module | None = None,
        style: str = 'pytorch',
        spatial_bias: Mapping | None = None,
        conv2: Mapping | None = None,
        plugins: Sequence[Mapping] = (),
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        choose('expansion of a basic block', expansion, (1,))
        choose('groups of a basic block', groups, (1,))
        choose('base_width, times the groups, of a basic block', channels if width is None else width, (channels,))
        choose('conv2 (or dcn) of a basic block', conv2, (None,))
        choose('style of a basic block', style, ('pytorch',))
        norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
        geometry1 = dict(kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        geometry2 = dict(kernel_size=3, padding=1, bias=False)
        self.in_channels, self.mid_channels, self.out_channels = in_channels, channels, channels
        self.expansion, self.stride, self.dilation, self.style = expansion, stride, dilation, style
        self.conv_cfg, self.norm_cfg = conv_cfg, norm_cfg

        self.conv1 = build_conv_layer(conv_cfg, in_channels, channels, **geometry1)
        self.bn1 = build_norm_layer(norm_cfg, channels)[1]
        self.conv2 = build_conv_layer(conv_cfg, channels, channels, **geometry2)
        self.bn2 = build_norm_layer(norm_cfg, channels)[1]
        self.downsample = downsample
        self._add_slots(
            (in_channels, channels, channels),
            (geometry1, geometry2),
            positions=('conv1',),
            spatial_bias=spatial_bias,
            plugins=plugins,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
            drop_path_rate=drop_path_rate,
        )

    def _residual_sum(self, x: Tensor) -> Tensor:
        y = self.conv1(x)  # (B, C, H1, W1)
        y, maps = self.make_maps('conv1', x, y)  # maps: (B, N, H1, W1) or None
        y = self.refine('after_conv1', self.relu(self.bn1(y)))

        out = self.conv_with_maps(self.conv2, y, maps)  # (B, C, H1, W1)
        out = self.refine('after_conv2', self.bn2(out))

        shortcut = x if self.downsample is None else self.downsample(x)  # (B, C, H1, W1)
        return shortcut + self.drop_path(out)
