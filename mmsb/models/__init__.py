from .bottleneck import Bottleneck
from .context import BAT, CBAM, ECA, GC, GE, NL, SE, SK, SRM, ReducedNL
from .resnet import SBResNet, SBResNetCifar
from .spatial_bias import SpatialBias
from .timm_backbone import TimmBackbone

__all__ = [
    'BAT',
    'CBAM',
    'ECA',
    'GC',
    'GE',
    'NL',
    'SE',
    'SK',
    'SRM',
    'Bottleneck',
    'ReducedNL',
    'SBResNet',
    'SBResNetCifar',
    'SpatialBias',
    'TimmBackbone',
]
