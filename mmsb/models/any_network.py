"""Spatial bias in a network of timm: one call, the same function at first, every weight under its old name.

`BLOCKS` says for each type of block which module a bias stands beside and which layer reads its maps. Hooks of the two
carry it out, so that a block's own forward stays as it is: the maps are made of the first one's input and have the size
of the second one's, to whose output `bias_conv(relu(bias_norm(maps)))` is added. That is the paper's concatenation with
the weights stored apart, as in `ResidualBlock`, and with the same names: `spatial_bias`, `bias_norm`, `bias_conv`.

Differs from the paper: other blocks than bottlenecks. In all of them the bias stands beside the convolution that looks
at neighbours, and the next layer of the same block reads it; where there is none before the sum with the shortcut
(basic blocks), it stands beside the first convolution, which the second one follows.

Shapes: B batch, C channels, N maps, H x W size of the reader's input.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from mmsb.models.bottleneck import check_not_folded
from mmsb.models.spatial_bias import SpatialBias, norm_for_maps
from mmsb.options import check_keys, choose, one_line

#: Type of a block, full name: path of the layer that a bias stands beside, path of the layer that reads its maps.
BLOCKS: dict[str, tuple[str, str]] = {
    'timm.models.byobnet.BasicBlock': ('conv1_kxk', 'conv2_kxk.conv'),
    'timm.models.byobnet.BottleneckBlock': ('conv2_kxk', 'conv3_1x1.conv'),
    'timm.models.byobnet.DarkBlock': ('conv1_1x1', 'conv2_kxk.conv'),
    'timm.models.byobnet.EdgeBlock': ('conv1_kxk', 'conv2_1x1.conv'),
    'timm.models._efficientnet_blocks.CondConvResidual': ('conv_dw', 'conv_pwl'),
    'timm.models._efficientnet_blocks.DepthwiseSeparableConv': ('conv_dw', 'conv_pw'),
    'timm.models._efficientnet_blocks.EdgeResidual': ('conv_exp', 'conv_pwl'),
    'timm.models._efficientnet_blocks.InvertedResidual': ('conv_dw', 'conv_pwl'),
    'timm.models._efficientnet_blocks.UniversalInvertedResidual': ('pw_exp', 'pw_proj.conv'),
    'timm.models.convnext.ConvNeXtBlock': ('conv_dw', 'mlp.fc1'),
    'timm.models.inception_next.MetaNeXtBlock': ('token_mixer', 'mlp.fc1'),
    'timm.models.regnet.Bottleneck': ('conv2', 'conv3.conv'),
    'timm.models.regnet.PreBottleneck': ('conv2', 'conv3'),
    'timm.models.resnest.ResNestBottleneck': ('conv2', 'conv3'),
    'timm.models.resnet.BasicBlock': ('conv1', 'conv2'),
    'timm.models.resnet.Bottleneck': ('conv2', 'conv3'),
    'timm.models.resnetv2.PreActBasic': ('conv1', 'conv2'),
    'timm.models.resnetv2.PreActBottleneck': ('conv2', 'conv3'),
    'timm.models.rexnet.LinearBottleneck': ('conv_dw', 'conv_pwl.conv'),
    'timm.models.senet.SEBottleneck': ('conv2', 'conv3'),
    'timm.models.senet.SEResNetBlock': ('conv1', 'conv2'),
    'timm.models.senet.SEResNetBottleneck': ('conv2', 'conv3'),
    'timm.models.senet.SEResNeXtBottleneck': ('conv2', 'conv3'),
    'timm.models.sknet.SelectiveKernelBasic': ('conv1', 'conv2.conv'),
    'timm.models.sknet.SelectiveKernelBottleneck': ('conv2', 'conv3.conv'),
}
STAGES = (4, 8, 16)
OPTIONS = ('num_maps', 'pool_size', 'kernel_size', 'pool', 'mix', 'norm_cfg')
GEOMETRY = ('kernel_size', 'stride', 'padding', 'dilation')
PROBE_PX = 256


def add_spatial_bias(model: nn.Module, stages: Sequence[int] | None = None, **options) -> nn.Module:
    """Give each block of a network a spatial bias, in place.

    The function stays exactly the same, because `bias_conv` starts at zero; training moves it from there.

    Args:
        model: a network of timm with blocks of `BLOCKS`, also one made with `features_only=True`.
        stages: strides of the blocks that get a bias: input pixels for each pixel of the block's output. None: 4, 8
            and 16. With dilated stages several have one stride.
        options: of `SpatialBias`: num_maps, pool_size, kernel_size, pool, mix, norm_cfg.

    Returns:
        The same model.

    Raises:
        ValueError: no block of the model is in the table, it has a bias already, a stride that none of its blocks has,
            an unknown option or value; and the network fails on an image of the size in its config.
    """
    check_keys('add_spatial_bias', options, OPTIONS)
    if not isinstance(model, nn.Module):
        raise ValueError(f'add_spatial_bias needs a network (timm.create_model(...)), got {model!r}')
    if any(isinstance(module, fx.GraphModule) for module in model.modules()):
        raise ValueError(
            'add_spatial_bias needs the blocks of a network, which a graph has lost: add the bias, then trace it'
        )
    if any(hasattr(module, 'spatial_bias') for module in model.modules()):
        raise ValueError('this network has spatial bias already')
    blocks = [block for block in model.modules() if type_name(block) in BLOCKS]
    if not blocks:
        raise ValueError(_unknown(model))
    called = probe(model, blocks)
    strides = sorted({found.stride for found in called})
    if stages is not None:
        if isinstance(stages, int) or not stages:
            raise ValueError(f'stages must be a list of strides, one or more of {strides}, got {stages!r}')
        for stride in stages:
            choose('each of stages, strides of blocks,', stride, strides)
    chosen = [found for found in called if found.stride in (STAGES if stages is None else stages)]
    if not chosen:
        raise ValueError(f'no block has a stride of {STAGES}: pass stages, one or more of {strides}')
    for found in chosen:
        _add(found, **options)
    return model


def type_name(block: nn.Module) -> str:
    """Return the full name of a module's type, as in `BLOCKS`."""
    return f'{type(block).__module__}.{type(block).__qualname__}'


def _unknown(model: nn.Module) -> str:
    """Explain how to add the block of which a network has most."""
    parts = [m for m in model.modules() if m is not model and not type_name(m).startswith(('torch.', 'timm.layers.'))]
    names = [type_name(part) for part in parts if sum(1 for _ in part.modules()) > 3] or [type_name(model)]
    kind = max(names, key=names.count)
    line = f"mmsb.models.any_network.BLOCKS['{kind}'] = ('CONV', 'READER')"
    return (
        f'add_spatial_bias does not know the blocks of {type(model).__name__} ({kind}); this line adds them, with the '
        f'paths in the block of a convolution and of the layer that is to read the maps beside it: {line}'
    )


class Maps:
    """Hooks of a block: keep the input of one module for the layer that reads the maps of it.

    torch.fx calls no hooks of modules that it does not enter, such as torch's own. While it traces the block, these are
    called here, so that its graph has the bias; and in that graph, which calls the same modules, they do nothing.

    Args:
        block: has the parts `spatial_bias`, `bias_norm` and `bias_conv`.
        beside: the module that the bias stands beside.
        reader: the layer, a convolution or, on channels-last features, a linear layer.
    """

    def __init__(self, block: nn.Module, beside: nn.Module, reader: nn.Module):
        self.block, self.beside, self.reader = block, beside, reader
        self.channels_last = isinstance(reader, nn.Linear)
        self.norm_follows = getattr(reader, 'bias', None) is None
        self.x: Tensor | None = None
        self.active, self.traced = True, False
        block.register_forward_pre_hook(self.start)
        beside.register_forward_pre_hook(self.keep)
        reader.register_forward_hook(self.add)

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'x': None}  # what an interrupted forward pass left belongs into no copy and no file

    def start(self, block: nn.Module, args: tuple) -> None:
        self.active = True
        if args and isinstance(args[0], fx.Proxy):
            self._call_hooks_of_leaves(args[0].tracer)

    def keep(self, beside: nn.Module, args: tuple) -> None:
        if self.active:
            self.x = args[0]  # (B, C, H', W')

    def add(self, reader: nn.Module, args: tuple, out: Tensor) -> Tensor:
        if not self.active:
            return out
        x, self.x, self.active = self.x, None, not self.traced
        if self.norm_follows:
            check_not_folded(reader)
        block, read = self.block, args[0].shape  # (B, C, H, W) or (B, H, W, C)
        maps = block.spatial_bias(x, read[1:3] if self.channels_last else read[2:])  # (B, N, H, W)
        more = block.bias_conv(F.relu(block.bias_norm(maps)))
        return out + (more.permute(0, 2, 3, 1) if self.channels_last else more)

    def _call_hooks_of_leaves(self, tracer: fx.Tracer) -> None:
        """Until the reader has been traced, call the hooks of the two modules if the tracer does not enter them."""
        self.traced, call = True, tracer.call_module

        def call_module(module: nn.Module, forward, args: tuple, kwargs: dict):
            is_leaf = tracer.is_leaf_module(module, tracer.path_of_module(module))
            if is_leaf and module is self.beside:
                self.keep(module, args)
            out = call(module, forward, args, kwargs)
            if module is self.reader:
                tracer.call_module = call
                return self.add(module, args, out) if is_leaf else out
            if is_leaf and self.reader in module.modules():
                raise ValueError(f'a leaf of a trace must not hide the reader of spatial bias: {type_name(module)}')
            return out

        tracer.call_module = call_module


class Probe:
    """What a forward pass shows of a block.

    Attributes:
        stride: input pixels for each pixel of the block's output; 0 if it was not called.
        channels: C of the input of the module that the bias stands beside.
        outputs: channels of the reader's output.
    """

    def __init__(self, block: nn.Module):
        self.block = block
        kind = type_name(block)
        parts = dict(block.named_modules())
        for path in BLOCKS[kind]:
            if path not in parts:
                raise ValueError(
                    f'BLOCKS[{kind!r}] names {path!r}; modules of this block: {", ".join(parts).strip(", ")}'
                )
        self.beside, self.reader = (parts[path] for path in BLOCKS[kind])
        self.stride = self.channels = self.outputs = 0

    def listen(self, side_px: int) -> list[RemovableHandle]:
        def at_beside(_, args: tuple) -> None:
            self.channels = args[0].shape[1]

        def at_reader(reader: nn.Module, _, out: Tensor) -> None:
            self.outputs = out.shape[-1 if isinstance(reader, nn.Linear) else 1]

        def at_block(_, __, out: Tensor) -> None:
            self.stride = round(side_px / out.shape[-1])

        return [
            self.beside.register_forward_pre_hook(at_beside),
            self.reader.register_forward_hook(at_reader),
            self.block.register_forward_hook(at_block),
        ]


def probe(model: nn.Module, blocks: Iterable[nn.Module]) -> list[Probe]:
    """Run a network once, and note what the blocks that it calls see."""
    found = [Probe(block) for block in blocks]
    handles = [handle for one in found for handle in one.listen(_probe_px(model))]
    try:
        run_on_meta(model)
    finally:
        for handle in handles:
            handle.remove()
    return [one for one in found if one.stride]


def channels_of(model: nn.Module) -> int:
    """Return the number of channels of the images that a network takes: those of its first convolution, else 3."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


def _probe_px(model: nn.Module) -> int:
    """Choose the size in timm's config of the network, if strides divide it: others may not do for attention."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    side_px = cfg.get('input_size', [PROBE_PX])[-1]
    return side_px if cfg.get('fixed_input_size') or side_px % 32 == 0 else PROBE_PX


def run_on_meta(model: nn.Module) -> None:
    """Run a network on one image in evaluation mode on the meta device: no arithmetic, and no weight is touched.

    Raises:
        ValueError: the network fails on this image.
    """
    image = torch.empty(1, channels_of(model), _probe_px(model), _probe_px(model), device='meta')
    values = {name: value.to('meta') for name, value in [*model.named_parameters(), *model.named_buffers()]}
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            functional_call(model.eval(), values, image)
    except Exception as error:
        size, name = 'x'.join(map(str, image.shape[2:])), type(model).__name__
        raise ValueError(
            f'cannot run {name} on an image of {size} pixels to see its strides: {one_line(error)}'
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode


def _add(found: Probe, *, norm_cfg: dict | None = None, **options) -> None:
    """Give a block its bias, on the device and in the precision of its reader, and hang the hooks."""
    block, reader = found.block, found.reader
    norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
    bias = SpatialBias(found.channels, norm_cfg=norm_cfg, **options)
    geometry = {name: getattr(reader, name) for name in GEOMETRY if hasattr(reader, name)} or dict(kernel_size=1)
    parts = dict(
        spatial_bias=bias,
        bias_norm=build_norm_layer(norm_for_maps(norm_cfg, bias.num_maps), bias.num_maps)[1],
        bias_conv=nn.Conv2d(bias.num_maps, found.outputs, **geometry, bias=False),
    )
    nn.init.zeros_(parts['bias_conv'].weight)
    like = next(reader.parameters())
    for name, part in parts.items():
        block.add_module(name, part.to(like.device, like.dtype).train(block.training))
    Maps(block, found.beside, reader)
