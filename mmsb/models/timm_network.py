"""SBResNet as a network of timm: what timm's training, validation, hub and feature extraction ask of its own ResNet.

A module of its own, because importing timm takes seconds. Where timm's code does not depend on names, it is timm's.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from timm.models.resnet import ResNet
from torch import Tensor, nn

from mmsb.models.basic_block import BasicBlock
from mmsb.models.bottleneck import ResidualBlock
from mmsb.models.classifier import SBResNetClassifier
from mmsb.models.weights import backbone_of, parts_to_add, split_head, start_bias
from mmsb.options import choose, positive_integer

#: Of each output stride, the strides and dilations of the stages.
STAGES = {
    32: dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
    16: dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    8: dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
}


class TimmSBResNet(SBResNetClassifier):
    """`SBResNetClassifier` with the attributes and methods of `timm.models.resnet.ResNet`, and its names of weights.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: number of scores; 0: the pooled features.
        in_chans: channels of the image.
        output_stride: 32, 16 or 8: the latter two dilate instead of striding, as timm's ResNet does.
        global_pool: 'avg', 'max', 'avgmax' or 'catavgmax'; '': none.
        drop_rate: of the dropout before the linear layer.
        device: of the weights; None: torch's default.
        dtype: of the weights; None: torch's default.
        options: of `SBResNetClassifier`.

    Raises:
        ValueError: as SBResNetClassifier, for another output stride, and for strides or dilations beside it.
    """

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        output_stride: int = 32,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options,
    ):
        stages = STAGES[choose('output_stride', output_stride, STAGES)]
        if output_stride != 32:
            for name in stages:
                if name in options:
                    raise ValueError(f'output_stride={output_stride} sets {name}: leave out one of them')
            options.update(stages, contract_dilation=True)
        with nullcontext() if device is None else torch.device(device):
            super().__init__(depth, num_classes=0, in_chans=in_chans, **options)
            if num_classes != 0:
                positive_integer('num_classes', num_classes)
            self.in_chans = in_chans
            self.drop_rate = drop_rate
            self.grad_checkpointing = False
            self._set_head(num_classes, global_pool)
        for info in self.feature_info:
            info['reduction'] = min(info['reduction'], output_stride)
        if hasattr(self, 'stem'):
            self.feature_info[0]['module'] = 'stem'  # it ends with its own ReLU
        if output_stride != 32:
            self._dilate_second_convs(stages['dilations'])
        self.to(dtype=dtype)

    def _dilate_second_convs(self, dilations: Sequence[int]) -> None:
        """Dilate conv2 of basic blocks too: timm does, OpenMMLab does not."""
        for i, dilation in enumerate(dilations):
            for block in getattr(self, f'layer{i + 1}'):
                if isinstance(block, BasicBlock):
                    for conv in [block.conv2, *(part for name, part in block.named_children() if name == 'bias_conv')]:
                        conv.dilation = conv.padding = (dilation, dilation)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        self.num_classes = num_classes
        self.global_pool, fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        like = next(self.parameters())
        self.fc = fc.to(like.device, like.dtype)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    get_classifier = ResNet.get_classifier
    forward_head = ResNet.forward_head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer by a new one, or by none for 0 classes; None keeps the pooling."""
        self._set_head(num_classes, self.global_pool.pool_type if global_pool is None else global_pool)
        for part in (self.global_pool, self.fc):
            part.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each block in the backward pass; batch norms count a batch once all the same."""
        self.grad_checkpointing = enable
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                block.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns by which learning rates decay with the depth: stem, blocks (coarse: stages), head."""
        return dict(stem=r'^(?:stem|conv1|bn1)\.', blocks=r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)')

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Map images to the last feature map and a list of those of `feature_info`.

        Args:
            x: images, (B, in_chans, H, W).
            indices: of `feature_info`; a number: that many from the end; None: all.
            norm: without effect, as in timm's ResNet: there is no norm behind a stage.
            stop_early: whether to leave out the stages behind the last index.
            output_fmt: 'NCHW'.
            intermediates_only: whether to return the list only.
        """
        choose('output_fmt', output_fmt, ('NCHW',))
        taken, last = feature_take_indices(len(self.feature_info), indices)
        x = self.forward_stem(x)
        found = [x] if 0 in taken else []
        x = self.maxpool(x)
        for i in range(1, (last + 1) if stop_early else len(self.feature_info)):
            x = getattr(self, f'layer{i}')(x)
            if i in taken:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages behind the last of the indices of `feature_info`, and the head; return the indices."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        for i in range(last + 1, len(self.feature_info)):
            setattr(self, f'layer{i}', nn.Sequential())
        self.new_parts = [part for part in self.new_parts if part in dict(self.named_modules())]
        if last == 0:
            self.maxpool = nn.Identity()
        if last < len(self.feature_info) - 1:
            prune_head = True  # it is as wide as the last stage
            self.num_features = self.feature_info[last]['num_chs']
        if prune_head:
            self.reset_classifier(0, '')
        return taken


def timm_network(depth: int, pretrained: bool = False, **options) -> nn.Module:
    """Build `sb_resnet{depth}` for `timm.create_model`, with its `features_only`, `out_indices`, `num_classes`, ...

    Raises:
        ValueError: for pretrained=True without a file, folder, URL or hub to load from; no weights are published. And
            for a checkpoint that has none of a ResNet.
    """
    name = f'sb_resnet{depth}'
    overlay = dict(options.pop('pretrained_cfg_overlay', None) or {})
    if options.get('deep_stem'):
        overlay.setdefault('first_conv', 'stem.0')
    cfg = resolve_pretrained_cfg(name, options.get('pretrained_cfg'), overlay)
    source = cfg.file or cfg.hf_hub_id or cfg.url
    if pretrained and not (source or cfg.state_dict):
        hint = 'name a file by pretrained_cfg_overlay=dict(file=...), or pass checkpoint_path instead of pretrained'
        raise ValueError(f'no weights of {name} are published: {hint}')

    def translate(state: Mapping[str, Tensor], model: TimmSBResNet) -> dict[str, Tensor]:
        theirs = backbone_of(state, str(source))
        new_parts = parts_to_add(model, theirs)
        start_bias(model, new_parts)
        if model.freezes():
            model.spare(new_parts)
        new = tuple(f'{part}.' for part in new_parts)
        ours = {key: value for key, value in model.state_dict().items() if key.startswith(new)}
        return ours | theirs | split_head(state)

    return build_model_with_cfg(
        TimmSBResNet, name, pretrained, pretrained_cfg_overlay=overlay, pretrained_filter_fn=translate, depth=depth,
        **options,
    )  # fmt: skip
