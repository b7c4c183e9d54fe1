"""Publish a classifier for timm: a folder of config.json and model.safetensors, which `timm.create_model` loads.

The network, and how its images are prepared, come from the config in the checkpoint of a training, which is read as
data, or from the arguments in a checkpoint of timm's train.py.
"""

import ast
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from mmsb.checkpoints.card import config_of
from mmsb.checkpoints.load import forget, load_checkpoint, load_state_dict
from mmsb.datasets.test_set import class_names, dataset_with_pipeline, loads_image, loads_rgb
from mmsb.models.weights import backbone_of, check_fit, split_head
from mmsb.options import choose
from mmsb.timm_registry import DEPTHS

HEADS = ('LinearClsHead', 'MultiLabelLinearClsHead')
#: Options of the backbone that say how it is built or trained, and not what it computes.
NOT_ITS_FUNCTION = (
    'type', 'depth', 'in_channels', 'out_indices', 'init_cfg', 'pretrained', 'frozen_stages', 'norm_eval', 'norm_cfg',
    'with_cp', 'zero_init_residual', 'drop_path_rate', '_scope_',
)  # fmt: skip
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'lanczos')  # by the same name in both
IMAGE_ARGUMENTS = ('mean', 'std', 'crop_pct', 'interpolation', 'input_size')  # of train.py, with names of timm's config


def publish_for_timm(checkpoint: str | os.PathLike, folder: str | os.PathLike, *, backbone: bool = False) -> str:
    """Write a folder that `timm.create_model('local-dir:FOLDER', pretrained=True)` loads, after `import mmsb`.

    Args:
        checkpoint: of a training of mmsb or of timm's train.py with an SB-ResNet; file or URL.
        folder: it must not exist, or be empty.
        backbone: whether to leave out the head: a network with `num_classes=0`, of a detector too.

    Returns:
        a warning, if the folder does not say how images are cropped, else ''.

    Raises:
        FileNotFoundError: the checkpoint, or the folder that the new one is to be in, does not exist.
        ValueError: the checkpoint does not say which network it is, or the network is not one of timm's registry.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f'{str(folder)!r} exists already: name a new folder')
    if not folder.parent.is_dir():
        raise FileNotFoundError(f'the folder of the output {str(folder)!r} does not exist')
    path = os.fspath(checkpoint)
    content = load_checkpoint(checkpoint, keep=True)
    state = load_state_dict(checkpoint, keep=True)
    forget()
    name, options, images = _of_train_py(path, content) or _of_config(path, content, backbone)
    network = _build(path, state, name, options, images, backbone)
    classes = () if backbone else class_names(Config(), content)
    _write(network, folder, classes, dict(options, in_chans=network.in_chans))
    warning = 'timm has no such steps as the test pipeline: set input_size, crop_pct and crop_mode in config.json'
    return '' if 'input_size' in images else warning


def _of_train_py(path: str, content: Mapping) -> tuple[str, dict, dict] | None:
    """Return name, options and image arguments of the network in a checkpoint of timm's train.py; None for others."""
    if not isinstance(content.get('args'), Mapping) or 'arch' not in content:
        return None
    args = content['args']
    name = choose(f'the network of checkpoint {path!r}', content['arch'], [f'sb_resnet{depth}' for depth in DEPTHS])
    options = dict(args.get('model_kwargs') or {}, **{'global_pool': args['gp']} if args.get('gp') else {})
    images = {key: args[key] for key in IMAGE_ARGUMENTS if args.get(key)}
    images.setdefault('input_size', (args.get('in_chans') or 3, *2 * [args.get('img_size') or 224]))
    return name, options, images


def _of_config(path: str, content: Mapping, backbone: bool) -> tuple[str, dict, dict]:
    """Return name, options and image arguments of the network in the config of a checkpoint."""
    meta = content['meta'] if isinstance(content.get('meta'), Mapping) else {}
    texts = config_of(meta)
    if 'model' not in texts:
        raise ValueError(
            f'checkpoint {path!r} has no config that says which network it is: name the checkpoint of the training; or '
            "build the network by timm.create_model('sb_resnet50', checkpoint_path=...), and timm.models.save_for_hf it"
        )
    loaders = ('test_dataloader', 'val_dataloader', 'train_dataloader')
    cfg = {key: _value(path, texts[key]) for key in ('model', 'data_preprocessor', *loaders) if key in texts}
    model = cfg['model']
    net = dict(model.get('backbone') or {})
    where = f'the backbone of checkpoint {path!r}'
    choose(f'the type of {where}', str(net.get('type')).rpartition('.')[2], ('SBResNet',))
    choose(f'the depth of {where}', net.setdefault('depth', 50), DEPTHS)
    if not backbone:
        for part, valid in dict(neck=('GlobalAveragePooling',), head=HEADS).items():
            kind = str((model.get(part) or {}).get('type')).rpartition('.')[2]
            choose(f'the {part} of checkpoint {path!r}, without --backbone,', kind, valid)
        last = net.get('num_stages', 4) - 1
        choose(f'the last of out_indices of {where}', (net.get('out_indices') or (last,))[-1], (last,))
    options = {key: value for key, value in net.items() if key not in NOT_ITS_FUNCTION}
    norm = dict(net.get('norm_cfg') or {})
    if norm.get('type') not in (None, 'BN', 'SyncBN') or norm.keys() - {'type', 'requires_grad'}:
        kind = 'BN' if norm['type'] == 'SyncBN' else norm['type']  # the same function, on a CPU too
        options['norm_cfg'] = {**norm, 'type': kind, 'requires_grad': True}
    pipelines = (dataset_with_pipeline(cfg, loader).get('pipeline') for loader in loaders)
    pipeline = next(filter(None, pipelines), None)
    if pipeline is None:
        raise ValueError(f'the config of checkpoint {path!r} has no pipeline that says whether images are RGB or BGR')
    channels = net.get('in_channels', 3)
    images = _crop(pipeline, channels)
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    images['mean'] = [value / 255 for value in preprocessor.get('mean') or [0.0] * channels]
    images['std'] = [value / 255 for value in preprocessor.get('std') or [1.0] * channels]
    swaps = any(preprocessor.get(key) for key in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    images['bgr'] = loads_rgb(pipeline) == swaps
    return f'sb_resnet{net["depth"]}', options, images


def _value(path: str, assignment: str):
    """Return the value that a text assigns, as `mmengine` dumps a config: literals and calls of `dict`."""
    try:
        return ast.literal_eval(_AsLiteral().visit(ast.parse(assignment).body[0].value))
    except ValueError as error:
        raise ValueError(f'the config in checkpoint {path!r} is not plain data: {assignment[:60]!r}') from error


class _AsLiteral(ast.NodeTransformer):
    """Turns `dict(a=1)` into `{'a': 1}`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or node.args:
            return node
        keys = [ast.Constant(keyword.arg) if keyword.arg else None for keyword in node.keywords]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


def _crop(pipeline: Sequence[Mapping], channels: int) -> dict:
    """Translate the steps of a test pipeline to timm's input_size, crop_pct, ...; {} where timm has no such steps."""
    names = [str(step.get('type')).rpartition('.')[2] for step in pipeline]
    steps = {name: step for name, step in zip(names, pipeline, strict=True) if not loads_image(step)}
    steps.pop('PackInputs', None)
    edge, crop, resize = (steps.get(name, {}) for name in ('ResizeEdge', 'CenterCrop', 'Resize'))
    interpolation = (edge or resize).get('interpolation', 'bilinear')
    if interpolation not in INTERPOLATIONS:
        return {}
    size, scale = crop.get('crop_size'), edge.get('scale')
    if list(steps) == ['ResizeEdge', 'CenterCrop'] and edge.get('edge', 'short') == 'short' and isinstance(size, int):
        share = size / scale
        if math.floor(size / share) < scale:  # timm resizes to this floor
            share = math.nextafter(share, 0)
        found = dict(input_size=(channels, size, size), crop_pct=share, crop_mode='center')
    elif list(steps) == ['Resize'] and resize.get('scale') and not resize.get('keep_ratio'):
        scale = resize['scale']
        width, height = (scale, scale) if isinstance(scale, int) else scale
        found = dict(input_size=(channels, height, width), crop_pct=1.0, crop_mode='squash')
    else:
        return {}
    return dict(found, interpolation=interpolation)


def _build(path: str, state: Mapping[str, Tensor], name: str, options: dict, images: dict, backbone: bool):
    """Build timm's network of this name, with the weights."""
    from timm.models import model_entrypoint  # takes seconds

    bgr = images.pop('bgr', False)
    weights = backbone_of(state, path)
    if not backbone:
        weights |= split_head(state)
    first = 'stem.0.weight' if 'stem.0.weight' in weights else 'conv1.weight'
    channels = weights[first].shape[1]
    if channels == 3 and bgr:  # timm's images are RGB
        weights[first] = weights[first].flip(1)
        images.update(mean=images['mean'][::-1], std=images['std'][::-1])
    overlay = {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in images.items()}
    options = dict(options, num_classes=len(weights.get('fc.weight', ())), in_chans=channels)
    network = model_entrypoint(name)(pretrained_cfg_overlay=overlay, **options)
    check_fit(path, network.state_dict(), weights)
    network.load_state_dict(weights)
    return network


def _write(network: torch.nn.Module, folder: Path, classes: Sequence[str], options: dict) -> None:
    """Write the folder, whole or not at all."""
    from timm.models import save_for_hf

    unfinished = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
    try:
        model_config = {'label_names': list(classes)} if classes else {}
        save_for_hf(network, str(unfinished), model_config, model_args=options, safe_serialization=True)
        os.replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
