"""Upstream's configs: one with a ResNet from each folder, SBResNet in its place, without weights, and small."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
# What a config says besides `type='mmsb.SBResNet'` (README, "Use it in your own config"; SE is a plugin here).
REPLACED = {
    'ResNet': {},
    'ResNetV1c': dict(deep_stem=True),
    'ResNetV1d': dict(deep_stem=True, avg_down=True),
    'ResNeXt': dict(groups=32, base_width=4),
    'SEResNet': dict(plugins=[dict(cfg=dict(type='mmsb.SE'), position='after_conv3')]),
}
SMALL_PX = 128
FEW = 50  # proposals, candidates and queries an image
UNSURE = 1e-3  # score of a detection: random weights are sure of nothing


def configs_of(library: str) -> Path:
    """Find the folder of configs that a library has installed.

    Raises:
        FileNotFoundError: it has installed none.
    """
    folder = Path(importlib.util.find_spec(library).origin).parent / '.mim' / 'configs'
    if not folder.is_dir():
        raise FileNotFoundError(f'{library} has no configs in {folder}: install it by pip or mim')
    return folder


def folders_of(library: str) -> list[str]:
    """Name the folders of configs, each of which is a method."""
    return sorted(path.name for path in configs_of(library).iterdir() if path.is_dir() and path.name != '_base_')


def choose_config(library: str, folder: str) -> str | None:
    """Name the first config of a folder that has a ResNet, one with 50 layers if there is any; None: none has.

    Configs in the folder itself come before those of its subfolders, which are downstream benchmarks.
    """
    root = configs_of(library)
    paths = (root / folder).rglob('*.py')
    for path in sorted(paths, key=lambda p: (len(p.parts), not re.search('r50|resnex?t50', p.name), p.name)):
        try:
            model = Config.fromfile(path).get('model')
        except Exception:  # some do not load at all: of a base that is missing, say
            continue
        if any(_type_of(node) in REPLACED for node in dicts_in(model)):
            return path.relative_to(root).as_posix()
    return None


def load(library: str, config: str, spatial_bias: dict | None) -> tuple[Config, list[str]]:
    """Load a config with SBResNet in the place of every ResNet, teachers and parts of trackers included.

    Returns:
        the config, and the types that were replaced.
    """
    root = configs_of(library)
    cfg = Config.fromfile(root / config)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the runner does
    for node in dicts_in(cfg.model):
        if isinstance(node.get('teacher_config'), str):  # 'configs/...', relative to the checkout
            node.teacher_config = dict(model=Config.fromfile(root.parent / node.teacher_config).model)
    replaced = []
    for node in dicts_in(cfg.model):
        _forget_weights(node)
        if _type_of(node) in REPLACED:
            replaced.append(_type_of(node))
            _replace(node, spatial_bias)
    _shrink(cfg)
    return cfg, replaced


def dicts_in(node) -> Iterator[ConfigDict]:
    """Go through all dicts of a nested config, a dict before those in it."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts_in(child)


def _type_of(node: dict) -> str | None:
    kind = node.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', None)


def _replace(backbone: ConfigDict, spatial_bias: dict | None) -> None:
    for name, value in REPLACED[_type_of(backbone)].items():
        if not (name == 'base_width' and 'width_per_group' in backbone):  # mmpretrain's name for it
            backbone.setdefault(name, value)
    backbone.type = 'mmsb.SBResNet'
    backbone.spatial_bias = spatial_bias
    # Random weights are nothing to freeze.
    backbone.frozen_stages = -1
    if backbone.get('norm_cfg'):
        backbone.norm_cfg.requires_grad = True


def _forget_weights(node: ConfigDict) -> None:
    init_cfg = node.get('init_cfg')
    if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
        node.init_cfg = None
    for name in ('pretrained', 'teacher_ckpt', 'checkpoint'):
        if isinstance(node.get(name), str):
            node[name] = None


def _shrink(cfg: Config) -> None:
    """Make what is only size small: images that batches are padded to, windows, numbers of proposals."""
    for preprocessor in (node for node in dicts_in(cfg.model) if 'preprocessor' in str(_type_of(node)).lower()):
        if preprocessor.get('size') is not None:
            preprocessor['size'] = (SMALL_PX, SMALL_PX)
        augmentations = preprocessor.get('batch_augments')
        for augmentation in augmentations if isinstance(augmentations, list) else ():
            for name in ('size', 'scale'):
                if name in augmentation:
                    augmentation[name] = (SMALL_PX, SMALL_PX)
    for node in dicts_in(cfg.model):
        for name in ('nms_pre', 'max_per_img', 'num_queries', 'num_proposals'):
            if isinstance(node.get(name), int):
                node[name] = min(node[name], FEW)
        if isinstance(node.get('score_thr'), float):
            node.score_thr = min(node.score_thr, UNSURE)
        if node.get('clip_border') is False:
            node.clip_border = True  # random boxes outside the image are an error of pasting masks on the CPU
        if 'num_cp' in node:
            node.num_cp = 0  # layers that are computed again to save memory, by a package that is not required
        if isinstance(node.get('sampler'), dict) and 'num' in node.sampler:
            node.sampler.num = min(node.sampler.num, FEW)
        if node.get('mode') == 'slide':
            node.update(crop_size=(SMALL_PX, SMALL_PX), stride=(SMALL_PX // 2, SMALL_PX // 2))
