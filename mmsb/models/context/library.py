"""Shared code of the blocks: plain layers to replace timm's, and argument checks."""

from collections import OrderedDict

from torch import nn

from mmsb.options import positive_integer


def conv_norm_act(in_channels: int, channels: int) -> nn.Sequential:
    """Make a 1x1 convolution, a batch norm and a ReLU, named as in timm."""
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), act=nn.ReLU(inplace=True)))


def plain_norms(block: nn.Module) -> nn.Module:
    """Replace each of timm's ConvNormAct modules with a Sequential of plain layers.

    timm's batch norm contains the activation, so tools that replace batch norms (SyncBatchNorm, fuse_conv_bn) would
    silently drop it. Names and values do not change; `block` is modified in place and returned.
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
        ValueError: if no channel is left, or if ratio is not a positive integer.
    """
    reduced = max(channels // positive_integer(f'ratio of {block}', ratio), at_least)
    if reduced < 1:
        raise ValueError(f'ratio of {block} must be an integer from 1 to its {channels} channels, got {ratio!r}')
    return reduced


def check_batch(block: str, norm: nn.Module, batch_size: int) -> None:
    """Check that the batch is large enough for a batch norm over one value per channel and image.

    Raises:
        ValueError: if the norm is in training mode and the batch has one image.
    """
    if norm.training and batch_size < 2 and not isinstance(norm, nn.SyncBatchNorm):
        raise ValueError(
            f'{block} needs at least 2 images a process in training, got {batch_size}: '
            'its batch norm sees one value per channel and image (use eval mode, or set norm_eval=True)'
        )
