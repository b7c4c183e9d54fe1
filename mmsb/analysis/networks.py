"""Networks to measure: built from configs with random weights, each with a forward pass and a loss.

A classification config gives the whole network, from normalised images to class scores. A detector or segmenter gives
its backbone and neck, which need only images; the loss is the sum of the means of their outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmsb.analysis import zoo
from mmsb.configs import build_model

PLAIN_IMAGENET = 'imagenet/resnet50_b256-100e_in1k.py'
_SB_TYPES = ('SBResNet', 'SBResNetCifar')


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        name: short name for tables.
        config: path, or the name of a shipped config.
        backbone_options: as in `zoo.load`.
    """

    name: str
    config: str
    backbone_options: str = ''

    def load(self) -> Config:
        return zoo.load(self.config, self.backbone_options)


class Features(nn.Module):
    """Backbone, and neck if there is one."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None):
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images, (B, 3, H, W), to feature maps."""
        x = self.backbone(x)
        return x if self.neck is None else self.neck(x)


class Network:
    """A network on a device.

    Args:
        source: config of the network.
        device: device to put it on.
        seed: seed of its random weights.
    """

    def __init__(self, source: Source, device: torch.device, seed: int):
        cfg = source.load()
        torch.manual_seed(seed)
        self.name = source.name
        self.num_classes = None
        if zoo.is_classifier(cfg):
            self.model = build_model(cfg)
            self.num_classes = cfg.model.head.num_classes
        else:
            backbone = zoo.build_backbone(cfg)
            self.model = Features(backbone, MODELS.build(cfg.model.neck) if cfg.model.get('neck') else None)
        self.model.to(device)
        self.params = sum(p.numel() for p in self.model.parameters())

    def forward(self, images: Tensor):
        """Map normalised images, (B, 3, H, W), to class scores or feature maps."""
        return self.model(images)

    def loss(self, images: Tensor) -> Tensor:
        """Compute the loss of a training step with labels 0, 1, 2, ..."""
        if self.num_classes is None:
            outputs = self.model(images)
            return sum(out.mean() for out in outputs)
        from mmpretrain.structures import DataSample  # detectors do not need this library

        samples = [DataSample().set_gt_label(i % self.num_classes).to(images.device) for i in range(len(images))]
        losses = self.model(images, samples, mode='loss')
        return sum(value for key, value in losses.items() if 'loss' in key)


def is_plain(cfg: Config) -> bool:
    """Return whether a config's backbone is a ResNet without additions."""
    backbone = cfg.model.get('backbone') or {}
    kind = str(backbone.get('type')).rpartition('.')[2]
    if backbone.get('plugins') or backbone.get('conv2'):
        return False
    return backbone.get('spatial_bias', {}) is None if kind in _SB_TYPES else kind.startswith('ResNet')


def sources_of(configs: Sequence[str], plain: str | None = None) -> tuple[list[Source], Source]:
    """List the networks of configs, and find the plain one as the baseline; if it is missing, insert it in front.

    Args:
        configs: configs to measure; duplicates are dropped.
        plain: config of the plain network. By default it is the first plain config in `configs`. If there is none, it
            is derived from the first config: the file beside it named without `sb-`, else ResNet-50 for ImageNet, else
            the first config without its additions.

    Returns:
        The sources, with distinct names, and the plain one of them.

    Raises:
        FileNotFoundError: if a config does not exist.
        ValueError: if there is no plain network to compare with.
    """
    found: dict[Path, Source] = {}
    for config in configs:
        found.setdefault(zoo.find(config).resolve(), Source('', config))
    sources = list(found.values())
    if plain is not None:
        chosen = found.get(zoo.find(plain).resolve()) or Source('', plain)
    else:
        chosen = next((source for source in sources if is_plain(source.load())), None) or _plain_of(sources[0])
    if chosen not in sources:
        sources.insert(0, chosen)
    place = sources.index(chosen)
    stems = [f'plain {Path(s.config).stem}' if s.backbone_options else Path(s.config).stem for s in sources]
    short = [stem.partition('_')[0] for stem in stems]
    names = short if len(set(short)) == len(short) else stems
    sources = [replace(source, name=name) for source, name in zip(sources, names, strict=True)]
    return sources, sources[place]


def _plain_of(source: Source) -> Source:
    cfg, path = source.load(), zoo.find(source.config)
    beside = path.with_name(path.name.replace('sb-', ''))
    if beside.is_file() and is_plain(zoo.load(beside)):
        shipped = beside.is_relative_to(zoo.CONFIGS)
        return Source('', str(beside.relative_to(zoo.CONFIGS) if shipped else beside))
    if zoo.is_classifier(cfg) and path.parent.name == 'imagenet':
        return Source('', PLAIN_IMAGENET)
    backbone = cfg.model.get('backbone') or {}
    removed = [key for key in ('plugins', 'conv2') if backbone.get(key)]
    if str(backbone.get('type')).rpartition('.')[2] in _SB_TYPES:
        removed.append('spatial_bias')
    if not removed:
        raise ValueError(f'{source.config!r} is not a ResNet with additions: name the plain network with --plain')
    return Source('', source.config, '; '.join(f'{key}=None' for key in removed))
