from .bottleneck import Bottleneck
from .resnet import SBResNet, SBResNetCifar
from .spatial_bias import SpatialBias

__all__ = ['Bottleneck', 'SBResNet', 'SBResNetCifar', 'SpatialBias']
