"""A small classifier with spatial bias and its checkpoint, and an image: for the tools that look into networks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmsb.configs import build_model
from mmsb.models.bottleneck import BIAS_PARTS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@dataclass(frozen=True)
class Digits:
    config: Path
    checkpoint: Path
    plain: Path
    image: Path


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Digits:
    """SB-ResNet-11 with random weights, a bias in stages 1 and 2; the same without its bias; an image, 28 x 40 px."""
    folder = tmp_path_factory.mktemp('digits')
    config = CONFIGS / 'demo/sb-resnet11_b64-10e_digits.py'
    torch.manual_seed(0)
    model = build_model(Config.fromfile(config))  # not initialised: every branch has an effect
    meta = dict(dataset_meta=dict(classes=[f'digit {i}' for i in range(10)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'sb.pth')
    plain = {key: value for key, value in model.state_dict().items() if not set(key.split('.')) & set(BIAS_PARTS)}
    torch.save(dict(state_dict=plain), folder / 'plain.pth')
    pixels = np.random.default_rng(0).integers(0, 256, (28, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / 'noise.png')
    return Digits(config, folder / 'sb.pth', folder / 'plain.pth', folder / 'noise.png')
