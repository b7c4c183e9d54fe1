"""One row of the table: a config with SBResNet is built, trained for one step, and predicts once."""

import functools
import importlib
import warnings
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from benchmarks.upstream.batches import ancestors, batch_for
from benchmarks.upstream.networks import load
from benchmarks.upstream.samples import IMAGES
from mmsb.models import SBResNet
from mmsb.options import one_line

BIAS_PARTS = {'spatial_bias', 'bias_norm', 'bias_conv'}
REASON_CHARS = 300
WARM_UP_LR = 1e-5


def run_row(library: str, config: str, spatial_bias: dict | None) -> dict:
    """Run a config, and say how far it came and what stopped it.

    Returns:
        built, step, prediction: whether each went well; gradients: whether they reached every parameter of the bias,
        None without bias; objects: the number of those predicted, None where there are none to predict; replaced: the
        types of the networks in whose place SBResNet is; reason: what was wrong, or ''.
    """
    row = dict(replaced=[], built=False, step=False, prediction=False, gradients=None, objects=None, reason='')
    stage = 'configuration'
    try:
        cfg, row['replaced'] = load(library, config, spatial_bias)
        stage = 'building'
        model = build(cfg, library)
        row['built'] = True
        stage = 'training step'
        missed = train_step(cfg, model)
        row['step'] = True
        if spatial_bias is not None:
            row['gradients'] = not missed
            if missed:
                row['reason'] = f'no gradient reaches {", ".join(missed[:3])} and {len(missed)} in all'
        stage = 'prediction'
        row['objects'] = predict(cfg, model)
        row['prediction'] = True
    except Exception as error:  # whatever stops a config is the result
        row['reason'] = f'{stage}: {type(error).__name__}: {one_line(error)}'[:REASON_CHARS]
    return row


def build(cfg: Config, library: str) -> nn.Module:
    """Build the network of a config with random weights everywhere, also where they would start at zero.

    Raises:
        ValueError: no SBResNet is in it.
    """
    init_default_scope(library)
    torch.manual_seed(0)
    if 'prototype' in cfg.model:
        cfg.model.prototype = 'set before the prediction'  # features of the images to retrieve, by a loader
    model = MODELS.build(cfg.model)
    model.init_weights()
    model = revert_sync_batchnorm(model)  # it needs a GPU
    backbones = dict(sb_resnets(model))
    if not backbones:
        raise ValueError('no SBResNet in the network')
    for backbone in backbones.values():
        _randomise_what_starts_at_zero(backbone)
    return model


def sb_resnets(model: nn.Module) -> Iterator[tuple[str, SBResNet]]:
    """Go through the SBResNets of a network with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, SBResNet))


def _randomise_what_starts_at_zero(backbone: SBResNet) -> None:
    for name, parameter in backbone.named_parameters():
        if name.endswith('bn3.weight'):
            nn.init.uniform_(parameter, 0.1, 0.3)  # small: batch norms at running statistics do not bound the sum
        elif name.endswith('bias_conv.weight'):
            nn.init.kaiming_normal_(parameter)


def train_step(cfg: Config, model: nn.Module) -> list[str]:
    """Train one step and name the parameters of the bias that no gradient reached.

    A tracker that upstream does not train as one is trained by its parts.

    Raises:
        ValueError: a loss is not finite, or no SBResNet gets a gradient.
    """
    model.train()
    MessageHub.get_current_instance().update_info_dict(dict(iter=1, epoch=0))  # a runner tells losses that warm up
    reached: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(functools.partial(_note, reached, name))
    for part in _trained_parts(cfg, model):
        losses = part.train_step(batch_for(cfg, part, training=True), _optimizer(cfg, part))
        for name, value in losses.items():
            if not torch.isfinite(torch.as_tensor(value)).all():
                raise ValueError(f'{name} is {value}')
    trained = [name for name, _ in sb_resnets(model) if any(key.startswith(f'{name}.') for key in reached)]
    if not trained:
        raise ValueError('no gradient reaches an SBResNet')
    names = [key for key, _ in model.named_parameters() if key.startswith(tuple(f'{name}.' for name in trained))]
    return [key for key in names if BIAS_PARTS & set(key.split('.')) and not reached.get(key)]


def _note(reached: dict[str, bool], name: str, grad: torch.Tensor) -> None:
    reached[name] = bool(grad.isfinite().all() and grad.count_nonzero())


def _trained_parts(cfg: Config, model: nn.Module) -> list[nn.Module]:
    if not ancestors(model) & {'DeepSORT', 'StrongSORT'}:
        return [model]
    if 'data_preprocessor' not in cfg.model.detector:  # the tracker's prepares videos
        options = {**cfg.model.data_preprocessor, 'type': 'DetDataPreprocessor'}
        options.pop('use_det_processor', None)
        model.detector.data_preprocessor = MODELS.build(options)
    return [part for part in (model.detector, model.reid) if list(sb_resnets(part))]


def _optimizer(cfg: Config, model: nn.Module):
    """Build the config's own optimizer, as at the start of a warm-up and in full precision; SGD if it has none."""
    options = dict(cfg.get('optim_wrapper') or dict(optimizer=dict(type='SGD', lr=0.001)))
    for name in ('loss_scale', 'dtype', 'use_fp64'):  # of AMP, which needs a GPU
        options.pop(name, None)
    optimizer = {**options['optimizer'], 'lr': WARM_UP_LR}
    return build_optim_wrapper(model, {**options, 'type': 'OptimWrapper', 'optimizer': optimizer})


def predict(cfg: Config, model: nn.Module) -> int | None:
    """Predict once, or extract features with a network that has no prediction.

    Returns:
        the number of objects, of instances and of lanes; None: a network of another kind.

    Raises:
        ValueError: what comes back is not one result for each image, or has no prediction in it.
    """
    model.eval()
    batch = batch_for(cfg, model, training=False)
    with torch.no_grad():
        if ancestors(model) & {'BaseSelfSupervisor', 'ImageToImageRetriever'}:
            features = model(**model.data_preprocessor(batch), mode='tensor')
            features = features if isinstance(features, tuple) else (features,)
            if not all(torch.isfinite(feature).all() for feature in features):
                raise ValueError('features are not finite')
        if 'BaseSelfSupervisor' in ancestors(model):
            return None
        if 'ImageToImageRetriever' in ancestors(model):
            model.prototype = features[-1].repeat(IMAGES, 1)
        results = model.test_step(batch)
    if len(results) != len(batch['data_samples']):
        raise ValueError(f'{len(results)} results of {len(batch["data_samples"])} images')
    result = results[0].video_data_samples[-1] if hasattr(results[0], 'video_data_samples') else results[0]
    predictions = [result.get(key) for key in result.keys() if key.startswith('pred')]  # noqa: SIM118  no mapping
    if not predictions:
        raise ValueError(f'a result has no prediction, but {", ".join(result.keys())}')
    counts = [len(prediction) for prediction in predictions if isinstance(prediction, InstanceData)]
    return max(counts, default=None)


def prepare() -> None:
    """Import what every row needs, so that a fork has it already."""
    warnings.filterwarnings('ignore')
    for name in ('mmdet.datasets', 'mmdet.models', 'mmseg.models', 'mmpretrain.models'):
        importlib.import_module(name)
