"""What the blocks have in common: finding the library that has one, and checks of what a user hands in."""

import importlib
import importlib.util
from collections import OrderedDict

from torch import nn

PACKAGES = {'mmpretrain': 'onedl-mmpretrain` (or `mmpretrain`)', 'timm': 'timm`'}


def from_library(block: str, module: str, name: str) -> type:
    """Import the class `name` of `module` for a block of ours.

    Raises:
        ImportError: if its library is not installed; says what to install.
    """
    library = module.partition('.')[0]
    if importlib.util.find_spec(library) is None:
        raise ImportError(f'mmsb.{block} needs {library}, which is not installed: run `pip install {PACKAGES[library]}')
    return getattr(importlib.import_module(module), name)


def plain_norms(block: nn.Module) -> nn.Module:
    """Write each convolution of timm's, with norm and activation in one, as a Sequential of plain layers.

    timm's batch norm has the activation inside. Whoever replaces batch norms (SyncBatchNorm, fuse_conv_bn) would drop
    it without a word. Names and values stay timm's; `block` itself is changed and returned.
    """
    for name, child in block.named_children():
        if type(child).__name__ != 'ConvNormAct':
            plain_norms(child)
            continue
        norm = nn.BatchNorm2d(child.bn.num_features, eps=child.bn.eps, momentum=child.bn.momentum)
        norm.load_state_dict(child.bn.state_dict())
        block.add_module(name, nn.Sequential(OrderedDict(conv=child.conv, bn=norm, act=child.bn.act)))
    return block


def reduced_channels(block: str, channels: int, ratio: int, at_least: int = 0) -> int:
    """Divide the number of channels by `ratio`, rounded down.

    Raises:
        ValueError: if no channel is left, or ratio is no positive integer.
    """
    valid = isinstance(ratio, int) and not isinstance(ratio, bool) and ratio >= 1
    reduced = max(channels // ratio, at_least) if valid else 0
    if reduced < 1:
        raise ValueError(f'ratio of {block} must be an integer from 1 to its {channels} channels, got {ratio!r}')
    return reduced


def check_batch(block: str, norm: nn.Module, batch_size: int) -> None:
    """Check that a batch norm of vectors has something to take statistics of.

    Raises:
        ValueError: if it is in training and has one image.
    """
    if norm.training and batch_size < 2 and not isinstance(norm, nn.SyncBatchNorm):
        raise ValueError(
            f'{block} needs at least 2 images a process in training, got {batch_size}: '
            'its batch norm has one value of each channel an image (evaluate it, or set norm_eval=True)'
        )
