"""The shipped configs as networks to count: their names, input sizes, and rows in the paper's tables."""

import ast
import copy
import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmsb.analysis.complexity import Complexity, count_parts
from mmsb.configs import build_model, check_library, read_config
from mmsb.options import positive_integer

_ROOT = Path(__file__).resolve().parents[1]
CONFIGS = next(path for path in (_ROOT / '.mim' / 'configs', _ROOT.parent / 'configs') if path.is_dir())
CIFAR_SHAPE = (3, 32, 32)


def shipped() -> list[str]:
    """List all classification configs of the paper's two tasks, by path below the configs folder."""
    folders = ('cifar100', 'imagenet')
    return [f'{folder}/{path.name}' for folder in folders for path in sorted((CONFIGS / folder).glob('*.py'))]


def paper_rows() -> Iterator[dict[str, str]]:
    """Yield the rows of the paper's tables, each with the config and backbone options that reproduce it."""
    with (Path(__file__).parent / 'paper.csv').open(newline='') as file:
        yield from csv.DictReader(file)


def as_printed(value: float, figure: str) -> str:
    """Round a value to the number of decimals of a figure in the paper."""
    return f'{value:.{len(figure.partition(".")[2])}f}'


def paper_row(config: str | Path) -> dict[str, str] | None:
    """Find a config's last row in the paper's tables; if there are several, this is the comparison with others."""
    rows = [row for row in paper_rows() if row['config'] and not row['backbone_options']]
    return next((row for row in reversed(rows) if find(row['config']).samefile(find(config))), None)


def systems() -> list[str]:
    """List the configs of the systems that the paper compares (tables 8 to 10)."""
    return [row['config'] for row in paper_rows() if row['table'] in ('8', '9', '10') and row['config']]


def find(config: str | Path) -> Path:
    """Find the file of a config.

    Args:
        config: path, or the name of a shipped config.

    Raises:
        FileNotFoundError: if it does not exist.
    """
    path = next((path for path in (Path(config), CONFIGS / config) if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f'config {str(config)!r} does not exist')
    return path


def load(config: str | Path, backbone_options: str = '') -> Config:
    """Load a config.

    Args:
        config: path, or the name of a shipped config.
        backbone_options: 'key=value; key=value' with Python literals, as in paper.csv.

    Raises:
        FileNotFoundError: if the config does not exist.
    """
    cfg = read_config(str(find(config)))
    pairs = (pair.split('=', 1) for pair in backbone_options.split(';') if pair.strip())
    cfg.merge_from_dict({f'model.backbone.{key.strip()}': ast.literal_eval(value) for key, value in pairs})
    return cfg


def input_shape(cfg: Config) -> tuple[int, int, int]:
    """Find the shape (channels, height, width) of the test images of a classification config.

    Raises:
        ValueError: if the config does not specify it.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset', {})
    if dataset.get('type') in ('CIFAR10', 'CIFAR100'):
        return CIFAR_SHAPE
    for step in dataset.get('pipeline', []):
        if step['type'] == 'CenterCrop':
            return (3, step['crop_size'], step['crop_size'])
    raise ValueError(f'the test pipeline of {cfg.filename!r} has no CenterCrop: pass the input size')


def is_classifier(cfg: Config) -> bool:
    """Return whether a config is for MMPretrain; detectors and segmenters need more than images as input."""
    return cfg.get('default_scope') == 'mmpretrain'


def build_backbone(cfg: Config) -> nn.Module:
    """Build only the backbone of a config, with its initial random weights; no checkpoint is loaded.

    Raises:
        ValueError: if the config has no backbone.
        ImportError: if its library is not installed.
    """
    if not cfg.model.get('backbone'):
        raise ValueError(f'the model of {cfg.filename!r} has no backbone')
    check_library(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return MODELS.build(
        {key: value for key, value in cfg.model.backbone.items() if key not in ('init_cfg', 'pretrained')}
    )


def measure(cfg: Config, shape: tuple[int, int, int] | None = None) -> Complexity:
    """Count the network of a classification config, or the backbone of another one.

    Args:
        cfg: config of any of the libraries.
        shape: shape of one image, (channels, height, width); by default that of the config, which only classification
            configs specify.

    Raises:
        ValueError: if the height or width is below 1, or the shape is not known.
    """
    return _count(cfg, shape, ())['']


def measure_stages(cfg: Config, shape: tuple[int, int, int] | None = None) -> dict[str, Complexity]:
    """Count each stage as `measure` does: 'stem', 'layer1', ..., and 'head' (with the neck) of a classifier.

    The sum over all stages is the result of `measure`.
    """
    backbone = 'backbone' if is_classifier(cfg) else ''
    names = [key for key, _ in build_backbone(cfg).named_children() if re.fullmatch(r'layer\d+', key)]
    paths = {name: f'{backbone}.{name}'.strip('.') for name in names}
    counts = _count(cfg, shape, {backbone, *paths.values()} - {''})
    stages = {name: counts[path] for name, path in paths.items()}
    stem = counts[backbone]
    for stage in stages.values():
        stem -= stage
    head = {'head': counts[''] - counts[backbone]} if backbone else {}
    return {'stem': stem, **stages, **head}


def measure_bias(cfg: Config, shape: tuple[int, int, int] | None = None) -> Complexity | None:
    """Count what spatial bias adds (`spatial_bias`, `bias_norm`, `bias_conv`): the difference to the plain network.

    Returns:
        The difference, or None for a network without spatial bias.
    """
    backbone = build_backbone(cfg)
    if not (hasattr(backbone, 'bias_modules') and backbone.bias_modules()):
        return None
    without = copy.deepcopy(cfg)
    without.model.backbone.spatial_bias = None
    return measure(cfg, shape) - measure(without, shape)


def _count(cfg: Config, shape: tuple[int, int, int] | None, parts: Iterable[str]) -> dict[str, Complexity]:
    if shape is not None:
        positive_integer('the height and width of an image', min(shape[1:]))
    if shape is None and not is_classifier(cfg):
        raise ValueError(f'{cfg.filename!r} is not a classification config: pass the size of its images')
    shape = shape or input_shape(cfg)
    with torch.device('meta'):  # the weights are not needed
        model = build_model(cfg) if is_classifier(cfg) else build_backbone(cfg)
    return count_parts(model, shape, parts)
