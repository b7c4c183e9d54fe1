"""A deployed network computes the same function: every system and option, libraries' networks, detectors, segmenters.

All are compared in float64, where a wrong fold cannot hide in rounding.
"""

import copy

import pytest
import torch
import torchvision
from mmcv.cnn import ConvModule
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.analysis import zoo
from mmsb.configs import build_model
from mmsb.models import SBResNet, SBResNetCifar
from mmsb.models.deploy import Affine, switch_to_deploy

DCN = dict(stage_with_dcn=(False, True, True, False))
OPTIONS = {
    'plain': dict(spatial_bias=None),
    'paper': dict(),
    'beside conv1': dict(spatial_bias=dict(position='conv1')),
    'added': dict(spatial_bias=dict(fusion='add')),
    'added beside conv1': dict(spatial_bias=dict(position='conv1', fusion='add', num_maps=2)),
    'pool only': dict(spatial_bias=dict(mix=False)),
    'maxima': dict(spatial_bias=dict(pool='max', pool_size=4, kernel_size=2)),
    'groups': dict(groups=4, base_width=4, spatial_bias=dict(position='conv1')),
    'borders': dict(conv_cfg=dict(type='Conv2d', padding_mode='reflect'), spatial_bias=dict(position='conv1')),
    'standardised weights': dict(conv_cfg=dict(type='ConvWS')),
    'standardised weights, added': dict(conv_cfg=dict(type='ConvWS'), spatial_bias=dict(fusion='add')),
    'V1c': dict(deep_stem=True),
    'V1d': dict(deep_stem=True, avg_down=True),
    'caffe': dict(style='caffe', norm_cfg=dict(type='BN', eps=1e-3, requires_grad=False)),
    'DCN': dict(dcn=dict(type='DCN'), **DCN),
    'DCN, added': dict(dcn=dict(type='DCN'), spatial_bias=dict(fusion='add'), **DCN),
    'DCNv2': dict(dcn=dict(type='DCNv2'), **DCN),
    'group norm': dict(norm_cfg=dict(type='GN', num_groups=4)),
    'norms over processes': dict(norm_cfg=dict(type='SyncBN')),
    'recomputed, dropped paths': dict(with_cp=True, drop_path_rate=0.5),
    'basic blocks': dict(depth=18),
    'basic blocks, added': dict(depth=18, spatial_bias=dict(fusion='add')),
    'frozen': dict(frozen_stages=2, norm_eval=True),
}
SMALL_SYSTEM = dict(base_channels=16, out_indices=[1, 2, 3])


def trained(model: nn.Module) -> nn.Module:
    """Give all norms and biases values as after a training, and turn to evaluation in float64."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for value in (*module.parameters(), module.running_mean, module.running_var):
                nn.init.uniform_(value, 0.4, 1.6)
            with torch.no_grad():  # scales of both signs
                for value in module.parameters():
                    value.mul_(torch.randn_like(value).sign())
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    model.double()
    model.eval()  # mmdet's ResNet returns None
    return model


def image(*shape) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=torch.double)


def left(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


@torch.no_grad()
def same_when_deployed(model: nn.Module, *inputs) -> nn.Module:
    """Assert that all outputs stay and that no batch norm is left; return the deployed network."""
    before = model(*inputs)
    deployed = switch_to_deploy(model)
    assert deployed is model
    assert left(deployed, _BatchNorm) == []
    after = deployed(*inputs)
    for one, other in zip(*([x] if isinstance(x, torch.Tensor) else x for x in (after, before)), strict=True):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max()
    return deployed


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('cls', [SBResNet, SBResNetCifar])
def test_every_option_of_the_networks(cls, name):
    if cls is SBResNetCifar and (
        {'deep_stem', 'stage_with_dcn'} & set(OPTIONS[name]) or name.startswith(('frozen', 'basic'))
    ):
        pytest.skip('no such option')
    net = cls(*([11] if cls is SBResNetCifar else []), base_channels=8, **OPTIONS[name])
    net = same_when_deployed(trained(revert_sync_batchnorm(net)), image(2, 3, 75, 50))
    assert bool(left(net, Affine)) == ('standardised' in name or name in ('DCN', 'DCN, added'))


def systems() -> list[str]:
    return sorted({name for name in zoo.shipped() if '50' in name})


@pytest.mark.parametrize('name', systems())
def test_every_system(name):
    cfg = zoo.load(name)
    cfg.model.backbone.update(SMALL_SYSTEM)
    size = 224 if any(block in name for block in ('ge-', 'bat-')) else 64
    same_when_deployed(trained(zoo.build_backbone(cfg)), image(1, 3, size, size))


def test_weights_are_in_one_convolution_then():
    net = switch_to_deploy(trained(SBResNetCifar(11)))
    block = net.layer1[0]
    assert block.conv3.in_channels == block.conv3.weight.shape[1] == 16 + 3
    assert not any('bias_conv' in name or 'bias_norm' in name for name in net.state_dict())


def test_twice_is_once():
    net = trained(SBResNetCifar(11, dict(fusion='add')))
    once = copy.deepcopy(switch_to_deploy(net).state_dict())
    torch.testing.assert_close(dict(switch_to_deploy(net).state_dict()), dict(once), rtol=0, atol=0)


@pytest.mark.parametrize('whole', [True, False])
def test_training_mode_is_an_error(whole):
    net = SBResNetCifar(11).eval()
    net.train() if whole else net.layer1[0].bn1.train()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r'evaluation mode.*call eval\(\) first'):
        switch_to_deploy(net)
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


class Rectified(nn.Module):
    """A ReLU between convolution and norm that no child module shows."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x).relu())


class ReadTwice(Rectified):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class OneForTwoNorms(Rectified):
    """One convolution with a norm for each of two levels, as RetinaSepBN's and RTMDet's heads have."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(ConvModule(3, 4, 1, norm_cfg=dict(type='BN')) for _ in range(2))
        self.levels[1].conv = self.levels[0].conv

    def forward(self, x):
        return self.levels[0](x) + self.levels[1](2 * x)


class DependsOnValues(Rectified):
    def forward(self, x):
        return self.bn(self.conv(x)) if x.sum() > 1e6 else self.bn(self.conv(x).relu())


def normalised_first() -> nn.Module:
    return ConvModule(3, 3, 1, norm_cfg=dict(type='BN'), order=('act', 'norm', 'conv'))


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    'make', [Rectified, ReadTwice, OneForTwoNorms, DependsOnValues, normalised_first, weight_normed]
)
def test_what_cannot_be_folded_stays_right(make):
    net = same_when_deployed(trained(make()), image(2, 3, 5, 4))
    assert left(net, Affine)


@pytest.mark.parametrize(
    'make',
    [
        lambda: torchvision.models.resnet18(),
        lambda: MODELS.build(dict(type='mmdet.ResNet', depth=50, base_channels=8)),
        lambda: MODELS.build(dict(type='mmpretrain.ResNet', depth=18, deep_stem=True)),
        lambda: ConvModule(3, 4, 1, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True),
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4, affine=False), nn.ReLU()),
    ],
    ids=['torchvision', 'mmdet', 'mmpretrain', 'ConvModule', 'transposed'],
)
def test_plain_pairs_of_other_networks_are_all_folded(make):
    torch.manual_seed(0)
    assert left(same_when_deployed(trained(make()), image(2, 3, 33, 40)), Affine) == []


@torch.no_grad()
def test_a_detector_and_a_segmenter():
    cfg = zoo.load('coco/faster-rcnn_sb-r50_fpn_1x_coco.py')
    cfg.model.neck.norm_cfg = dict(type='BN')
    cfg.model.backbone.init_cfg = None
    detector = trained(build_model(cfg))
    before = detector.rpn_head(detector.extract_feat(image(1, 3, 64, 96)))
    assert left(switch_to_deploy(detector), (_BatchNorm, Affine)) == left(detector, Affine)
    torch.testing.assert_close(detector.rpn_head(detector.extract_feat(image(1, 3, 64, 96))), before)

    cfg = zoo.load('ade20k/fpn_sb-r50_40k_ade20k-512x512.py')
    cfg.model.backbone.init_cfg = None
    segmenter = trained(revert_sync_batchnorm(build_model(cfg)))
    before = segmenter(image(1, 3, 64, 96))
    assert left(switch_to_deploy(segmenter), _BatchNorm) == []
    torch.testing.assert_close(segmenter(image(1, 3, 64, 96)), before)
