"""Reads configs and builds their networks; trains and writes nothing."""

import copy
import importlib.util

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmsb.checkpoints.load import load_state_dict
from mmsb.models.bottleneck import BIAS_PARTS
from mmsb.models.weights import check_fit, is_pretrained
from mmsb.options import one_line

LIBRARIES = {
    'mmpretrain': 'onedl-mmpretrain (or mmpretrain)',
    'mmdet': 'onedl-mmdetection (or mmdet)',
    'mmseg': 'onedl-mmsegmentation (or mmsegmentation)',
}


def read_config(path: str) -> Config:
    """Read a config file; errors in it name the file.

    Raises:
        ValueError: the config can't be read or has no model.
    """
    try:
        cfg = Config.fromfile(path)
    except SystemExit as error:
        raise ValueError(f'config {path!r} calls sys.exit({error.code!r})') from error
    except Exception as error:  # a config is Python code: anything can be wrong in it
        raise ValueError(f'config {path!r}: {one_line(error)}') from error
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'config {path!r} has no model: model = dict(type=..., ...)')
    return cfg


def check_library(cfg: Config) -> None:
    """Check that the library of a config is installed.

    Raises:
        ImportError: it is not, or detection lacks `mmcv._ext`.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    if scope in LIBRARIES and importlib.util.find_spec(scope) is None:
        raise ImportError(f'this config needs {scope}, which is not installed: install {LIBRARIES[scope]}')
    if scope == 'mmdet' and importlib.util.find_spec('mmcv._ext') is None:
        raise ImportError(
            'detection needs mmcv._ext, which this mmcv lacks, and MMSB_OPS=off disables its stand-in: unset MMSB_OPS'
        )


def drop_warm_starts(node) -> None:
    """Remove each `Pretrained` init_cfg, and `pretrained`, from the config of a model, in place.

    Who loads a whole checkpoint afterwards needs no others, and a frozen SBResNet would read or download its own.
    """
    if isinstance(node, dict):
        if isinstance(node.get('pretrained'), str):
            node['pretrained'] = None
        init_cfg = node.get('init_cfg')
        if isinstance(init_cfg, dict) and is_pretrained(init_cfg):
            node['init_cfg'] = None
        elif isinstance(init_cfg, list):
            node['init_cfg'] = [cfg for cfg in init_cfg if not is_pretrained(cfg)] or None
    if isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            drop_warm_starts(child)


def build_model(cfg: Config) -> nn.Module:
    """Build the network of a config as the runner does, including the config's data preprocessor."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = copy.copy(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(model)


def load_trained(cfg: Config, checkpoint: str, *, bias: bool = True) -> nn.Module:
    """Build the network of a config with the weights of a checkpoint, in evaluation mode.

    Args:
        cfg: the config; its warm starts are ignored.
        checkpoint: path or URL.
        bias: whether to build spatial bias; without it, the weights of the bias are left out.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: it belongs to another network.
        ImportError: the library of the config is missing.
    """
    check_library(cfg)
    state = load_state_dict(checkpoint)
    cfg = copy.deepcopy(cfg)
    drop_warm_starts(cfg.model)
    if not bias:
        cfg.model.backbone.spatial_bias = None
        state = {key: value for key, value in state.items() if not set(key.split('.')) & set(BIAS_PARTS)}
    model = build_model(cfg)
    check_fit(checkpoint, model.state_dict(), state)
    model.load_state_dict(state)
    return model.eval()
