"""A bias in networks of timm changes nothing at first, learns, and equals SBResNet's where the network is its own."""

import copy

import pytest
import timm
import torch
from torch import nn

import mmsb
from mmsb.models import SBResNet

NETWORKS = [
    'resnet18',
    'regnety_002',
    'convnext_atto',
    'convnextv2_atto',
    'mobilenetv3_small_050',
    'efficientnet_lite0',
]


def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', NETWORKS)
def test_it_starts_as_the_same_function_and_learns(name):
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    names = list(net.state_dict())
    with torch.no_grad():
        expected = net(image())
        assert mmsb.add_spatial_bias(net, num_maps=2) is net
        assert torch.equal(net(image()), expected)
        assert torch.equal(copy.deepcopy(net)(image()), expected)
    assert set(names) < set(net.state_dict())
    optimizer = torch.optim.SGD(net.train().parameters(), lr=1e-3)  # at 0.1 the loss explodes and saturates ReLU6
    for _ in range(3):  # last norms leave zero, then bias_conv does, then the operator has a gradient
        optimizer.zero_grad()
        net(image()).square().sum().backward()
        optimizer.step()
    new = [name for name, p in net.named_parameters() if name not in names and not p.grad.any()]
    assert new == []


def test_the_maps_are_those_of_an_sb_resnet():
    torch.manual_seed(0)
    net, ours = mmsb.add_spatial_bias(timm.create_model('resnet50')).double().eval(), SBResNet(50).double().eval()
    for module in net.modules():
        if hasattr(module, 'bias_conv'):
            nn.init.normal_(module.bias_conv.weight)
            nn.init.uniform_(module.bn3.weight, 0.3, 1.2)
    missing, unexpected = ours.load_state_dict(net.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ['fc.weight', 'fc.bias'])
    with torch.no_grad():
        torch.testing.assert_close(
            net.forward_features(image().double()), ours(image().double())[-1], rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(('name', 'options', 'named'), [
    ('vit_tiny_patch16_224', dict(), ['vision_transformer.Block', 'BLOCKS[']),
    ('resnet18', dict(stages=(5,)), ['stages', '5', '16']),
    ('resnet18', dict(pol='max'), ['pol', 'pool']),
])  # fmt: skip
def test_mistakes_are_named_in_one_line(name, options, named):
    with pytest.raises(ValueError) as error:
        mmsb.add_spatial_bias(timm.create_model(name), **options)
    assert all(word in str(error.value) for word in named), error.value
    assert '\n' not in str(error.value)
