"""Folds the batch norms of a trained network into its convolutions: the same function with fewer operations.

A batch norm in evaluation is `scale * x + shift` per channel. Behind a convolution both go into its weights. The bias
maps complicate this: where a norm follows `conv(y) + bias_conv(maps)`, both weights take the scale. The norm of the
maps moves in front of their upsampling, which it commutes with because the weights of an interpolation sum to 1; there
it becomes one matrix together with the mixing of positions.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import Conv2dAdaptivePadding, wrappers
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.models.bottleneck import ResidualBlock
from mmsb.models.spatial_bias import Reduction, SpatialBias, check_not_folded, is_plain

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, wrappers.Conv2d, wrappers.Conv3d, Conv2dAdaptivePadding)
TRANSPOSED_CONVS = (nn.ConvTranspose2d, wrappers.ConvTranspose2d)
DEFORMABLE = 'ModulatedDeformConv2dPack'  # by name: mmcv.ops needs compiled operations. DCNv1 has no bias to fold into
NORM_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


class Affine(nn.Module):
    """A batch norm in evaluation that no convolution can take: `scale * x + shift` per channel."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.shift = nn.Parameter(shift, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) to the same shape and type."""
        shape = (-1, *[1] * (x.dim() - 2))
        return torch.addcmul(self.shift.view(shape), x, self.scale.view(shape)).to(x.dtype)


@torch.no_grad()
def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Fold all batch norms of a network, in place: a backbone, classifier, detector or segmenter.

    The outputs stay the same within float tolerance; the state dict does not. Convolution and norm are paired where it
    is certain that nothing lies between them: in our own blocks, in `ConvModule` and `Sequential`, and where a trace of
    the module that owns both shows it. Any other batch norm becomes one multiplication and addition.

    Args:
        model: any module tree, in evaluation mode.

    Returns:
        The same model.

    Raises:
        ValueError: the model, or a batch norm in it, is in training mode; or `fuse_conv_bn` has been at a convolution
            beside spatial bias.
    """
    training = model.training or any(module.training for module in model.modules() if isinstance(module, _BatchNorm))
    if training:
        raise ValueError('switch_to_deploy needs a network in evaluation mode, and this one trains: call eval() first')
    modules = list(model.modules())
    for block in modules:
        if isinstance(block, ResidualBlock):
            _merge_bias(block)
    owners = Counter(id(child) for module in modules for child in module.children())
    for module in modules:
        for conv_name, norm_name in list(_pairs(module)):
            convs = [module.get_submodule(conv_name)]
            norm = module.get_submodule(norm_name)
            if _is_foldable(convs[0]) and owners[id(convs[0])] == 1 and _is_batch_norm(norm):
                if isinstance(module, ResidualBlock) and conv_name == _summed(module):
                    convs.append(module.bias_conv)
                _fold(convs, norm)
                module.add_module(norm_name, nn.Identity())
        if isinstance(module, ConvModule):
            module.turn_on_efficient_conv_bn_eval(False)  # there is no norm for it any more
    for module in modules:
        for name, norm in list(module.named_children()):
            if _is_batch_norm(norm):
                module.add_module(name, Affine(*_scale_and_shift(norm, norm.running_mean)))
    model.eval()  # the new modules too
    return model


def _merge_bias(block: ResidualBlock) -> None:
    """Prepare a block for the folding of its norms.

    The convolution that reads the maps takes the weights of `bias_conv`, if it is a plain one. With fusion 'add' the
    maps get a `bias_conv` of ones, since a norm scales them differently for each channel.
    """
    if block.bias_fusion == 'add' and not hasattr(block, 'bias_conv'):
        beside = getattr(block, block.bias_position)
        if _is_foldable(beside):
            num_maps, width = block.spatial_bias.num_maps, beside.out_channels
            block.bias_conv = nn.Conv2d(num_maps, width, 1, bias=False).to(beside.weight)
            nn.init.ones_(block.bias_conv.weight)
    elif block.bias_fusion == 'concat' and block.bias_conv is not None:
        if _is_batch_norm(block.bias_norm):
            block.spatial_bias.mix = _as_matrix(block.spatial_bias, block.bias_norm)
            block.bias_norm = nn.Identity()
        reader = getattr(block, _summed(block))
        check_not_folded(reader)
        if is_plain(reader) and is_plain(block.bias_conv):
            reader.weight = _parameter(torch.cat([reader.weight, block.bias_conv.weight], dim=1), reader.weight)
            reader.in_channels += block.bias_conv.in_channels
            block.bias_conv = None


def _as_matrix(bias: SpatialBias, norm: _BatchNorm) -> nn.Linear:
    """Write what happens to the pooled maps, and the norm that follows, as one linear layer."""
    exact = copy.deepcopy(bias).double()
    inputs = exact.reduce.out_channels * exact.pool_size**2
    basis = torch.eye(inputs + 1, inputs, dtype=torch.float64, device=norm.running_mean.device)  # and a row of zeros
    scale, shift = _scale_and_shift(norm, basis)
    maps = exact.mix_positions(basis.view(-1, exact.reduce.out_channels, exact.pool_size, exact.pool_size))
    columns = (maps * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).flatten(1)
    linear = nn.Linear(inputs, columns.shape[1], dtype=norm.running_mean.dtype, device=basis.device)
    linear.weight.copy_((columns[:-1] - columns[-1]).T)
    linear.bias.copy_(columns[-1])
    return linear


def _summed(block: ResidualBlock) -> str | None:
    """Return the name of the convolution to whose output that of `bias_conv` is added."""
    if getattr(block, 'bias_conv', None) is None:
        return None
    beside = block.convs.index(block.bias_position)
    return block.convs[beside if block.bias_fusion == 'add' else beside + 1]


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of a convolution and of the norm that alone reads its output, for each such pair in a module."""
    children = dict(module.named_children())
    if isinstance(module, ResidualBlock):
        yield from ((conv, conv.replace('conv', 'bn')) for conv in module.convs)
    elif type(module).forward in (ConvModule.forward, Reduction.forward):
        if module.with_norm and module.order.index('norm') == module.order.index('conv') + 1:
            yield 'conv', module.norm_name
    elif type(module).forward is nn.Sequential.forward:
        yield from itertools.pairwise(children)
    elif any(map(_is_foldable, children.values())) and any(map(_is_batch_norm, children.values())):
        yield from _traced_pairs(module)


class _ChildrenAreLeaves(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def _traced_pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    try:
        calls = [node for node in _ChildrenAreLeaves().trace(module).nodes if node.op == 'call_module']
    except Exception:  # its forward depends on values, so that nothing is known
        return
    times = Counter(node.target for node in calls)
    for norm in calls:
        conv = norm.args[0] if norm.args else None
        own = conv in calls and '.' not in conv.target + norm.target
        if own and list(conv.users) == [norm] and times[conv.target] == times[norm.target] == 1:
            yield conv.target, norm.target


def _is_batch_norm(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and type(norm).forward in NORM_FORWARDS and norm.running_mean is not None


def _is_foldable(conv: nn.Module) -> bool:
    """Return whether a module is a convolution of exactly the weights that it stores."""
    computed = bool(conv._forward_pre_hooks or conv._forward_hooks) or nn.utils.parametrize.is_parametrized(conv)
    transposed = type(conv) in TRANSPOSED_CONVS and conv.groups == 1
    return not computed and (type(conv) in CONVS or transposed or type(conv).__name__ == DEFORMABLE)


def _scale_and_shift(norm: _BatchNorm, like: Tensor) -> tuple[Tensor, Tensor]:
    """Compute, in float64, what a batch norm multiplies by and adds; return both in the type of `like`."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale.to(like.dtype), shift.to(like.dtype)


def _fold(convs: list[nn.Module], norm: _BatchNorm) -> None:
    """Fold a norm of the sum of convolutions into them; the last one takes the shift."""
    scale, shift = _scale_and_shift(norm, torch.empty(0, dtype=torch.float64))
    for conv in convs:
        shape = (1, -1) if type(conv) in TRANSPOSED_CONVS else (-1, 1)
        shape += (1,) * (conv.weight.dim() - 2)
        conv.weight = _parameter(conv.weight * scale.view(shape), conv.weight)
        if conv.bias is not None:
            conv.bias = _parameter(conv.bias * scale, conv.bias)
    last = convs[-1]
    bias = shift if last.bias is None else last.bias + shift
    last.bias = _parameter(bias, last.weight)


def _parameter(value: Tensor, like: nn.Parameter) -> nn.Parameter:
    """Make a parameter with the type, memory format and `requires_grad` of another."""
    value = torch.empty_like(like, dtype=like.dtype).copy_(value) if value.shape == like.shape else value.to(like.dtype)
    return nn.Parameter(value, requires_grad=like.requires_grad)
