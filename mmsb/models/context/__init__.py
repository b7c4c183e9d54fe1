"""Other blocks of global context, one mechanism a file, to compare spatial bias with and to combine it with.

Each is built from a config, in a slot of the residual block (mmsb.models.bottleneck):
`plugins=[dict(cfg=dict(type='mmsb.SE'), position='after_conv3')]`, or, in the place of the 3x3 convolution,
`conv2=dict(type='mmsb.SK')`. `ratio` divides the number of channels in all of them.
"""

from .bat import BAT
from .cbam import CBAM
from .eca import ECA
from .gc import GC
from .ge import GE
from .nl import NL
from .reduced_nl import ReducedNL
from .se import SE
from .sk import SK
from .srm import SRM

__all__ = ['BAT', 'CBAM', 'ECA', 'GC', 'GE', 'NL', 'SE', 'SK', 'SRM', 'ReducedNL']
