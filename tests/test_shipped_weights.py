"""The shipped weights: whole, named by their hash, described, and taken by the configs that they are of."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmsb.analysis import zoo
from mmsb.checkpoints.card import TO_FILL
from mmsb.checkpoints.load import load_checkpoint, load_state_dict
from mmsb.configs import build_model
from mmsb.models.weights import check_fit

WEIGHTS = sorted((Path(__file__).resolve().parents[1] / 'weights').glob('*.safetensors'))
MAX_BYTES = 2_000_000


def config_of(weights: Path) -> Config:
    """Read the config that the model card names."""
    (name,) = re.findall(r'^`(\S+_cifar100)`$', weights.with_suffix('.md').read_text(), re.M)
    return Config.fromfile(zoo.CONFIGS / f'cifar100/{name}.py')


def test_weights_of_both_networks_are_shipped():
    assert [path.stem.partition('_')[0] for path in WEIGHTS] == ['resnet38', 'sb-resnet38']


@pytest.mark.parametrize('weights', WEIGHTS, ids=lambda path: path.stem)
class TestWeights:
    def test_name_size_and_card(self, weights):
        content, card = weights.read_bytes(), weights.with_suffix('.md').read_text()
        digest = hashlib.sha256(content).hexdigest()
        assert weights.stem.endswith(f'-{digest[:8]}')
        assert digest in card
        assert TO_FILL not in card
        assert len(content) < MAX_BYTES

    def test_they_fit_as_a_whole_and_name_the_classes(self, weights):
        model = build_model(config_of(weights))
        check_fit(str(weights), model.state_dict(), load_state_dict(weights))
        assert len(load_checkpoint(weights)['meta']['dataset_meta']['classes']) == 100

    @pytest.mark.parametrize('owner', ['model', 'backbone'])
    def test_init_cfg_takes_them(self, weights, owner):
        cfg = config_of(weights)
        section = cfg.model if owner == 'model' else cfg.model.backbone
        section.init_cfg = dict(type='Pretrained', checkpoint=str(weights))
        model = build_model(cfg)
        model.init_weights()
        state, loaded = load_state_dict(weights), model.state_dict()
        names = [name for name in state if owner == 'model' or name.startswith('backbone.')]
        assert len(names) > 200
        assert all(torch.equal(loaded[name], state[name]) for name in names)
