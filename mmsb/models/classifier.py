"""SBResNet as a classifier in plain PyTorch: torchvision's names and interface."""

import inspect
import math
import os

from mmengine.logging import print_log
from torch import Tensor, nn

from mmsb.checkpoints.load import load_state_dict
from mmsb.models.resnet import PAPER_BIAS, SBResNet
from mmsb.models.weights import split_head
from mmsb.options import check_keys, positive_integer


class SBResNetClassifier(SBResNet):
    """ResNet with spatial bias, global average pool and linear layer. Its defaults are the same in every scope.

    Args:
        depth: 18, 34, 50, 101 or 152.
        pretrained: checkpoint of a plain ResNet or of an SB-ResNet, path or URL. Its head is loaded if it has as many
            classes; else the head is new, and the log says so.
        num_classes: number of scores; 0: the pooled features.
        in_chans: channels of the image, by timm's name.
        options: of SBResNet, but for in_channels and out_indices.

    Raises:
        ValueError: as SBResNet, and for a number of classes that is not an integer of at least 0.
        FileNotFoundError: if the checkpoint does not exist.
    """

    defaults_of_library = False

    def __init__(
        self,
        depth: int = 50,
        pretrained: str | os.PathLike | None = None,
        num_classes: int = 1000,
        spatial_bias: dict | None = PAPER_BIAS,
        *,
        in_chans: int = 3,
        **options,
    ):
        own = [name for name in inspect.signature(type(self)).parameters if name != 'options']
        others = [name for name in inspect.signature(SBResNet).parameters if name not in ('in_channels', 'out_indices')]
        check_keys(type(self).__name__, options, dict.fromkeys([*own, *others]))
        super().__init__(depth, spatial_bias, in_channels=in_chans, pretrained=pretrained, **options)
        self.out_indices = (self.num_stages - 1,)
        if not next(self.parameters()).is_meta:
            self.init_weights()  # before there is a head, which is not a part of a backbone's checkpoint
        self.num_features = self.feat_dim
        self.num_classes = num_classes
        if num_classes != 0:
            positive_integer('num_classes', num_classes)
            self.fc = nn.Linear(self.num_features, num_classes)
            if pretrained is not None:
                self._load_head(pretrained)
        self.feature_info = [dict(num_chs=self.stem_channels, reduction=2, module='stem' if self.deep_stem else 'relu')]
        for i, layer in enumerate(self.res_layers):
            channels, reduction = self.base_channels * 2**i * self.expansion, 4 * math.prod(self.strides[: i + 1])
            self.feature_info.append(dict(num_chs=channels, reduction=reduction, module=layer))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images, (B, in_chans, H, W), to the last feature map, (B, num_features, H / 32, W / 32)."""
        return super().forward(x)[-1]

    def forward_head(self, x: Tensor) -> Tensor:
        """Map the last feature map to scores, (B, num_classes)."""
        x = x.mean((2, 3))
        return self.fc(x) if self.num_classes else x

    def forward(self, x: Tensor) -> Tensor:
        """Map images, (B, in_chans, H, W), to scores, (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _dump_init_info(self, *_) -> None:
        """Leave out mmengine's line for each parameter."""

    def _load_head(self, path: str | os.PathLike) -> None:
        head = split_head(load_state_dict(path))
        if head and head['fc.weight'].shape == self.fc.weight.shape:
            self.load_state_dict(head, strict=False)
            return
        found = f'a head of {len(head["fc.weight"])} classes' if head else 'no head'
        print_log(f'{os.fspath(path)!r} has {found}: the one of {self.num_classes} classes is new', logger='current')


def sb_resnet18(pretrained: str | os.PathLike | None = None, num_classes: int = 1000, **options) -> SBResNetClassifier:
    """SB-ResNet-18; the arguments are those of `SBResNetClassifier`."""
    return SBResNetClassifier(18, pretrained, num_classes, **options)


def sb_resnet34(pretrained: str | os.PathLike | None = None, num_classes: int = 1000, **options) -> SBResNetClassifier:
    """SB-ResNet-34; the arguments are those of `SBResNetClassifier`."""
    return SBResNetClassifier(34, pretrained, num_classes, **options)


def sb_resnet50(pretrained: str | os.PathLike | None = None, num_classes: int = 1000, **options) -> SBResNetClassifier:
    """SB-ResNet-50; the arguments are those of `SBResNetClassifier`."""
    return SBResNetClassifier(50, pretrained, num_classes, **options)


def sb_resnet101(pretrained: str | os.PathLike | None = None, num_classes: int = 1000, **options) -> SBResNetClassifier:
    """SB-ResNet-101; the arguments are those of `SBResNetClassifier`."""
    return SBResNetClassifier(101, pretrained, num_classes, **options)


def sb_resnet152(pretrained: str | os.PathLike | None = None, num_classes: int = 1000, **options) -> SBResNetClassifier:
    """SB-ResNet-152; the arguments are those of `SBResNetClassifier`."""
    return SBResNetClassifier(152, pretrained, num_classes, **options)
