"""The shipped configs as networks to count: which there are, at which input size, beside which row of the paper."""

import ast
import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config

from mmsb.analysis.complexity import Complexity, count
from mmsb.engine.launcher import build_model, read_config

_ROOT = Path(__file__).resolve().parents[1]
CONFIGS = next(path for path in (_ROOT / '.mim' / 'configs', _ROOT.parent / 'configs') if path.is_dir())
CIFAR_SHAPE = (3, 32, 32)


def shipped() -> list[str]:
    """List the names of all classification configs of the paper's two tasks, below the folder of configs."""
    folders = ('cifar100', 'imagenet')
    return [f'{folder}/{path.name}' for folder in folders for path in sorted((CONFIGS / folder).glob('*.py'))]


def paper_rows() -> Iterator[dict[str, str]]:
    """Yield the rows of the paper's tables, with the config and the options of its backbone that make each of them."""
    with (Path(__file__).parent / 'paper.csv').open(newline='') as file:
        yield from csv.DictReader(file)


def as_printed(value: float, figure: str) -> str:
    """Round a value to as many decimals as a figure of the paper has."""
    return f'{value:.{len(figure.partition(".")[2])}f}'


def load(config: str | Path, backbone_options: str = '') -> Config:
    """Read a config.

    Args:
        config: path, or the name of a shipped one.
        backbone_options: 'key=value; key=value', Python literals, as in the paper's table.

    Raises:
        FileNotFoundError: if there is no such config.
    """
    path = next((path for path in (Path(config), CONFIGS / config) if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f'config {str(config)!r} does not exist')
    cfg = read_config(str(path))
    pairs = (pair.split('=', 1) for pair in backbone_options.split(';') if pair.strip())
    cfg.merge_from_dict({f'model.backbone.{key.strip()}': ast.literal_eval(value) for key, value in pairs})
    return cfg


def input_shape(cfg: Config) -> tuple[int, int, int]:
    """Find the shape (channels, height, width) of the images that a classification config is tested on.

    Raises:
        ValueError: if the config does not say.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset', {})
    if dataset.get('type') in ('CIFAR10', 'CIFAR100'):
        return CIFAR_SHAPE
    for step in dataset.get('pipeline', []):
        if step['type'] == 'CenterCrop':
            return (3, step['crop_size'], step['crop_size'])
    raise ValueError(f'the test pipeline of {cfg.filename!r} has no CenterCrop: say the input size with --shape')


def measure(cfg: Config, shape: tuple[int, int, int] | None = None) -> Complexity:
    """Count the network of a config; `shape` of one image, (channels, height, width), is the config's by default.

    Raises:
        ValueError: for a config of another library than MMPretrain, and for a height or width below 1.
    """
    if shape is not None and min(shape) < 1:
        raise ValueError(f'the height and width of an image must be at least 1, got {shape[1:]}')
    if cfg.get('default_scope') != 'mmpretrain':
        raise ValueError(f'classification networks are counted, and {cfg.filename!r} is of {cfg.get("default_scope")}')
    with torch.device('meta'):  # nobody needs the weights
        model = build_model(cfg)
    return count(model, shape or input_shape(cfg))
