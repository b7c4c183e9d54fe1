"""Other global context blocks, one mechanism per file, to compare with spatial bias or combine with it.

Each is built from a config in a slot of the residual block (mmsb.models.bottleneck):
`plugins=[dict(cfg=dict(type='mmsb.SE'), position='after_conv3')]`, or `conv2=dict(type='mmsb.SK')` to replace the 3x3
convolution. In every block, `ratio` divides the number of channels.
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
