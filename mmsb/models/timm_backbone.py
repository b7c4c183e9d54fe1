"""Any network of timm as the backbone of an OpenMMLab model, with spatial bias if wanted."""

import difflib
import os
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, initialize
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.checkpoints.load import load_state_dict
from mmsb.models.any_network import add_spatial_bias, run_on_meta
from mmsb.models.bottleneck import BIAS_PARTS
from mmsb.models.weights import check_fit
from mmsb.options import choose, known_options
from mmsb.registry import MODELS


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Returns the feature maps of a network of timm: those of its `features_only=True`.

    Feature maps 0 to 4 of ResNet, ResNeXt, RegNet, EfficientNet and MobileNet have strides 2, 4, 8, 16 and 32; feature
    maps 0 to 3 of ConvNeXt have 4, 8, 16 and 32.

    `channels` and `strides` list those of the outputs, for the `in_channels` of a neck. Weights keep timm's names,
    below `net.`; layers behind the last output are left out.

    Args:
        model_name: as in `timm.list_models()`.
        spatial_bias: arguments of `add_spatial_bias`: stages, num_maps, pool_size, ...; dict(): the defaults. None: no
            bias.
        pretrained: checkpoint with timm's names, path or URL: of the plain network, which starts the bias at zero
            effect, or of one with the same bias. None: random weights; nothing is downloaded unasked.
        out_indices: feature maps to return, in ascending order; None: those of stride 4 and more.
        frozen_stages: freeze everything up to the feature map of this index; -1: nothing. As in SBResNet, a bias that
            the checkpoint lacks learns all the same.
        norm_eval: keep batch norms at their running statistics in training.
        options: further arguments of `timm.create_model`, such as drop_path_rate.
        init_cfg: see mmengine's BaseModule; timm's own initialisation stays where it is None.

    Raises:
        ValueError: for an unknown name, index or option, and a checkpoint that does not fit.
        FileNotFoundError: if the checkpoint does not exist.
    """

    @known_options
    def __init__(
        self,
        model_name: str,
        spatial_bias: Mapping | None = None,
        pretrained: str | os.PathLike | None = None,
        *,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        options: Mapping | None = None,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(init_cfg)
        import timm  # takes seconds

        check_name(model_name)
        options = dict(options or {})
        with torch.device('meta'):
            whole = timm.create_model(model_name, **options)
        valid = range(len(whole.feature_info))
        if out_indices is None:
            out_indices = [i for i in valid if whole.feature_info[i]['reduction'] >= 4]
        for index in out_indices:
            choose('each of out_indices', index, valid)
        choose('frozen_stages', frozen_stages, range(-1, len(valid)))
        features = timm.create_model(
            model_name, features_only=True, out_indices=tuple(out_indices), feature_cls='getter', **options
        )
        self.net, self.out_indices = features.model, tuple(features.out_indices)
        self.channels, self.strides = features.feature_info.channels(), features.feature_info.reduction()
        if spatial_bias is not None:
            add_spatial_bias(self.net, **spatial_bias)
        bias = [name for name, _ in self.named_modules() if name.split('.')[-1] in BIAS_PARTS]
        self.pretrained, self._known = pretrained, set(whole.state_dict())
        lacks_bias = pretrained is None or not self._load()
        self.norm_eval = norm_eval
        self.frozen = modules_up_to(self.net, whole.feature_info[frozen_stages]) if frozen_stages >= 0 else []
        for module in self.frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False
        self.spare(bias if lacks_bias else [])
        self.train()

    def _load(self) -> bool:
        """Load the checkpoint and return whether it has a bias; if not, ours starts at zero effect."""
        path = os.fspath(self.pretrained)
        theirs = load_state_dict(path)
        prefix = next((p for p in ('backbone.net.', 'net.') if any(key.startswith(p) for key in theirs)), '')
        theirs = {key.removeprefix(prefix): value for key, value in theirs.items() if key.startswith(prefix)}
        ours = self.net.state_dict()
        has_bias = any(is_bias(key) for key in theirs)
        needed = {key: value for key, value in ours.items() if has_bias or not is_bias(key)}
        theirs = {key: value for key, value in theirs.items() if key in ours or key not in self._known}  # no head
        check_fit(path, needed, theirs)
        self.net.load_state_dict(theirs, strict=False)
        for module in [] if has_bias else self.bias_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)
        start = '' if has_bias or needed.keys() == ours.keys() else '; spatial bias starts at zero effect'
        print_log(f'loaded {len(theirs)} tensors of {path!r}{start}', logger='current')
        return has_bias

    def bias_modules(self) -> list[nn.Module]:
        """List the modules of spatial bias: none without it."""
        return [module for name, module in self.named_modules() if name.split('.')[-1] in BIAS_PARTS]

    def init_weights(self) -> None:
        """Keep timm's initial values, or load the checkpoint again: an `init_cfg` of the whole model comes before."""
        if self.init_cfg and not self.is_init:
            initialize(self, self.init_cfg)
        if self.pretrained is not None and not self.is_init:
            self._load()
        self._is_init = True

    def spare(self, parts: Sequence[str]) -> None:
        """Exempt parts from freezing, as `SBResNet.spare` does."""
        self.new_parts = list(parts)
        for part in self.new_parts:
            self.get_submodule(part).requires_grad_(True).train(self.training)

    def train(self, mode: bool = True) -> 'TimmBackbone':
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)] if self.norm_eval else []
        for module in [*self.frozen, *norms]:
            module.training = False
        for part in self.new_parts:
            self.get_submodule(part).train(mode)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (B, 3, H, W), to one feature map (B, C, H / stride, W / stride) for each of `out_indices`."""
        return tuple(self.net.forward_intermediates(x, indices=self.out_indices, intermediates_only=True))


def check_name(name: str) -> None:
    """Check that timm has a network of this name.

    Raises:
        ValueError: it has not; the message suggests the closest one.
    """
    import timm

    if not isinstance(name, str) or not timm.is_model(name):
        near = difflib.get_close_matches(str(name), timm.list_models(), n=1)
        hint = f' (did you mean {near[0]!r}?)' if near else ''
        raise ValueError(f'model_name must be one of timm.list_models(), got {name!r}{hint}')


def is_bias(key: str) -> bool:
    """Return whether the name of a weight is that of spatial bias."""
    return any(part in BIAS_PARTS for part in key.split('.'))


def modules_up_to(net: nn.Module, feature: Mapping) -> list[nn.Module]:
    """List the modules that have been called by the time that a feature map of `feature_info` is there, but the net."""
    called: dict[nn.Module, None] = {}
    done = []

    def at_call(module: nn.Module, _) -> None:
        if not done:
            called[module] = None

    handles = [module.register_forward_pre_hook(at_call) for module in net.modules()]
    handles.append(net.get_submodule(feature['module']).register_forward_hook(lambda *_: done.append(True)))
    try:
        run_on_meta(net)
    finally:
        for handle in handles:
            handle.remove()
    return [module for module in called if module is not net]
