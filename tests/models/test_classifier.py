"""SBResNet as a classifier in plain PyTorch, in timm's registry and through torch.hub."""

import copy
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmsb
from mmsb.models import SBResNet

ROOT = Path(__file__).resolve().parents[2]
DEPTHS = (18, 34, 50, 101, 152)
NEW = ('spatial_bias', 'bias_norm', 'bias_conv')


def image():
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def same(found, expected):
    """Compare in float64: float32 rounds differently from kernel to kernel, and so from processor to processor."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def run(net):
    return copy.deepcopy(net).double().eval()(image().double())


def scramble_norms(net):
    for norm in [m for m in net.modules() if isinstance(m, _BatchNorm)]:
        for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
            nn.init.uniform_(value, 0.3, 1.2)
    return net.eval()


@pytest.fixture(scope='module')
def plain():
    torch.manual_seed(0)
    return scramble_norms(torchvision.models.resnet18(num_classes=7))


@pytest.fixture
def path(plain, tmp_path):
    torch.save(plain.state_dict(), tmp_path / 'resnet18.pth')
    return tmp_path / 'resnet18.pth'


def added(net):
    """Add up, from torchvision's network, the sizes of the layers of a bias in each block of the first three stages."""
    total = 0
    for block in [block for i in (1, 2, 3) for block in getattr(net, f'layer{i}')]:
        beside, reader = (block.conv2, block.conv3) if hasattr(block, 'conv3') else (block.conv1, block.conv2)
        reduce = 5 * beside.in_channels + 2 * 5
        mix = 100 * 100 * 3 + 100
        total += reduce + mix + 2 * 3 + 3 * reader.out_channels * reader.kernel_size[0] ** 2
    return total


@pytest.mark.parametrize('depth', DEPTHS)
def test_it_is_torchvisions_network_and_the_bias(depth):
    with torch.device('meta'):
        theirs, ours = getattr(torchvision.models, f'resnet{depth}')(), getattr(mmsb, f'sb_resnet{depth}')()
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    shared = {name: shape for name, shape in shapes.items() if not any(part in NEW for part in name.split('.'))}
    assert shared == {name: value.shape for name, value in theirs.state_dict().items()}
    counts = [sum(p.numel() for p in net.parameters()) for net in (ours, theirs)]
    assert counts[0] - counts[1] == added(theirs)


@torch.no_grad()
def test_starts_as_the_plain_classifier(plain, path):
    same(run(mmsb.sb_resnet18(path, num_classes=7)), run(plain))


@torch.no_grad()
def test_loads_a_classifier_with_bias_whole(tmp_path):
    torch.manual_seed(0)
    ours = scramble_norms(mmsb.sb_resnet18(num_classes=7))
    for block in [module for module in ours.modules() if hasattr(module, 'bias_conv')]:
        nn.init.normal_(block.bias_conv.weight)
    torch.save(ours.state_dict(), tmp_path / 'sb.pth')
    again = mmsb.sb_resnet18(str(tmp_path / 'sb.pth'), num_classes=7).eval()
    assert torch.equal(again(image()), ours(image()))
    fresh = mmsb.sb_resnet18(num_classes=7).eval()
    fresh.load_state_dict(torch.load(tmp_path / 'sb.pth'))
    assert torch.equal(fresh(image()), ours(image()))


@torch.no_grad()
def test_another_number_of_classes_is_a_new_head(plain, path):
    assert run(mmsb.sb_resnet18(path, num_classes=4)).shape == (2, 4)
    features = run(mmsb.sb_resnet18(path, num_classes=0))
    same(copy.deepcopy(plain.fc).double()(features), run(plain))


def test_it_trains():
    torch.manual_seed(0)
    net = mmsb.sb_resnet18(num_classes=7, zero_init_residual=False).train()
    nn.functional.cross_entropy(net(image()), torch.tensor([3, 5])).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_no_config_or_registry_is_needed(path):
    code = f"""
import sys, torch, mmsb
net = mmsb.sb_resnet18({str(path)!r}, num_classes=7)
assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
print(sorted({{'mmpretrain', 'mmdet', 'mmseg', 'timm'}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '[]'


@torch.no_grad()
def test_timm_gives_feature_maps():
    net = timm.create_model('sb_resnet50', features_only=True).eval()
    assert net.feature_info.channels() == [64, 256, 512, 1024, 2048]
    assert net.feature_info.reduction() == [2, 4, 8, 16, 32]
    outs = net(image())
    assert [tuple(out.shape[1:]) for out in outs] == [
        (64, 32, 24),
        (256, 16, 12),
        (512, 8, 6),
        (1024, 4, 3),
        (2048, 2, 2),
    ]
    backbone = SBResNet(50, out_indices=(0, 1, 2, 3)).eval()  # the default depends on the library in use
    backbone.load_state_dict({name: value for name, value in net.state_dict().items() if name in backbone.state_dict()})
    assert all(torch.equal(*pair) for pair in zip(outs[1:], backbone(image()), strict=True))
    assert len(timm.create_model('sb_resnet18', features_only=True, out_indices=(1, 3))(image())) == 2


@torch.no_grad()
def test_timm_builds_the_classifier(tmp_path):
    assert set(timm.list_models('sb_resnet*')) == {f'sb_resnet{depth}' for depth in DEPTHS}
    torch.manual_seed(0)
    net = scramble_norms(mmsb.sb_resnet18(num_classes=7))
    torch.save(net.state_dict(), tmp_path / 'sb.pth')
    again = timm.create_model('sb_resnet18', num_classes=7, checkpoint_path=str(tmp_path / 'sb.pth')).eval()
    assert torch.equal(again(image()), net(image()))
    with torch.device('meta'):
        assert timm.create_model('sb_resnet34', num_classes=0)(image().to('meta')).shape == (2, 512)


@torch.no_grad()
def test_torch_hub(plain, path):
    assert {f'sb_resnet{depth}' for depth in DEPTHS} <= set(runpy.run_path(str(ROOT / 'hubconf.py')))
    net = torch.hub.load(str(ROOT), 'sb_resnet18', source='local', pretrained=str(path), num_classes=7)
    same(run(net), run(plain))


@pytest.mark.parametrize(('make', 'named'), [
    (lambda path: mmsb.sb_resnet50(path), ['resnet18.pth', 'does not fit', 'layer1.0.conv1.weight', 'needs']),
    (lambda path: mmsb.sb_resnet18(num_classes=-1), ['num_classes', '-1', 'at least']),
    (lambda path: mmsb.sb_resnet18(num_clases=3), ['num_clases', 'num_classes']),
    (lambda path: mmsb.sb_resnet18(spatial_bias=dict(num_map=3)), ['num_map', 'num_maps']),
    (lambda path: mmsb.sb_resnet18(in_channels=3), ['in_channels', "did you mean 'in_chans'"]),
    (lambda path: timm.create_model('sb_resnet18', pretrained=True), ['sb_resnet18', 'checkpoint_path']),
    (lambda path: timm.create_model('sb_resnet18', drop_block=0.1), ['drop_block', 'drop_path_rate']),
])  # fmt: skip
def test_mistakes_are_named_in_one_line(make, named, path):
    with pytest.raises(ValueError) as error:
        make(path)
    assert all(word in str(error.value) for word in named), error.value
    assert '\n' not in str(error.value)


def test_a_missing_checkpoint_is_named():
    with pytest.raises(FileNotFoundError, match=re.escape('nowhere.pth')):
        mmsb.sb_resnet18('nowhere.pth')


def test_an_unknown_depth_is_refused():
    with pytest.raises(AttributeError, match='sb_resnet20'):
        mmsb.sb_resnet20  # noqa: B018
