"""Names and shapes of the weights in checkpoints of the method's authors, translated to ours.

Theirs are torchvision's, and `SB` in each block with a bias. There `bn2` has C + N channels and `conv3` reads C + N,
the maps last; here these weights are stored apart. Their bias always stands beside conv2.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_NAMES = {
    'SB.feature_reduction.0.': 'spatial_bias.reduce.conv.',
    'SB.feature_reduction.1.': 'spatial_bias.reduce.bn.',
    'SB.sb_conv.': 'spatial_bias.mix.',
}
_MIX = re.compile(r'^(.*\.)SB\.sb_conv\.weight$')


def our_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under our names, each in the shape that it has here; those of others as they are."""
    ours = dict(state)
    for block in [found[1] for found in map(_MIX.match, state) if found]:
        for theirs, name in _NAMES.items():
            for key in [key for key in ours if key.startswith(block + theirs)]:
                ours[block + name + key.removeprefix(block + theirs)] = ours.pop(key)
        reduced = ours[f'{block}spatial_bias.reduce.conv.weight'].shape[0]
        num_maps = reduced - ours[f'{block}spatial_bias.mix.weight'].shape[2] + 1
        for key in [key for key in ours if key.startswith(f'{block}bn2.')]:
            norm, name = ours[key], key.rpartition('.')[2]
            ours[f'{block}bias_norm.{name}'] = norm[-num_maps:].clone() if norm.dim() else norm.clone()
            ours[key] = norm[:-num_maps].clone() if norm.dim() else norm
        features, maps = ours[f'{block}conv3.weight'].tensor_split([-num_maps], dim=1)
        ours[f'{block}conv3.weight'], ours[f'{block}bias_conv.weight'] = features.clone(), maps.clone()
    return ours
