"""Checkpoints of the method's authors compute here what their network, written from its description, computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsb.analysis import zoo
from mmsb.configs import build_model
from mmsb.models import SBResNet, SBResNetCifar


class SB(nn.Module):
    def __init__(self, channels: int, side: int):
        super().__init__()
        self.side = side
        self.feature_reduction = nn.Sequential(nn.Conv2d(channels, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU())
        self.sb_conv = nn.Conv1d(side * side, side * side, 3)

    def forward(self, x, size):
        columns = F.adaptive_avg_pool2d(self.feature_reduction(x), self.side).flatten(2).permute(0, 2, 1)
        maps = self.sb_conv(columns).permute(0, 2, 1).reshape(len(x), 3, self.side, self.side)
        return F.interpolate(maps, size, mode='bilinear', align_corners=False)


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, side: int | None):
        super().__init__()
        maps = 0 if side is None else 3
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width + maps)
        self.conv3, self.bn3 = nn.Conv2d(width + maps, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.SB = None if side is None else SB(width, side)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        z = self.conv2(y)
        if self.SB is not None:
            z = torch.cat([z, self.SB(y, z.shape[2:])], 1)
        out = self.bn3(self.conv3(F.relu(self.bn2(z))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Theirs(nn.Module):
    """Stages of the given numbers of blocks; the first `biased` stages have a bias."""

    def __init__(self, stem: int, counts: tuple[int, ...], biased: int, side: int, classes: int, cifar: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3 if cifar else 7, 1 if cifar else 2, 1 if cifar else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.pool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
        inputs = stem
        for stage, count in enumerate(counts):
            blocks, width = [], stem * 2**stage
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(Block(inputs, width, stride, side if stage < biased else None))
                inputs = 4 * width
            setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
        self.stages, self.fc = len(counts), nn.Linear(inputs, classes)

    def features(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f'layer{stage + 1}')(x)
        return x

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def trained(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for norm in [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]:
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(value, 0.3, 1.2)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('cifar', [False, True])
def test_their_network_in_ours(cifar, prefix, tmp_path):
    if cifar:
        theirs = Theirs(16, (1, 1, 1), biased=2, side=10, classes=100, cifar=True)
        build, options, x = SBResNetCifar, dict(depth=11, spatial_bias=dict(pool_size=10)), torch.rand(2, 3, 32, 32)
    else:
        theirs = Theirs(8, (3, 4, 6, 3), biased=3, side=10, classes=10, cifar=False)
        build, options, x = SBResNet, dict(depth=50, base_channels=8, stem_channels=8), torch.rand(2, 3, 96, 96)
    trained(theirs)
    path = tmp_path / 'theirs.pth'
    torch.save({f'{prefix}{key}': value for key, value in theirs.state_dict().items()}, path)
    ours = build(**options, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    ours.init_weights()
    expected = theirs.features(x)
    difference = (ours.eval()(x)[-1] - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5


@torch.no_grad()
def test_convert_weights_makes_a_classifier_of_them(tmp_path, run_tool):
    theirs = trained(Theirs(16, (4, 4, 4), biased=2, side=6, classes=100, cifar=True))
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    config = 'configs/cifar100/sb-resnet38_b64-300e_cifar100.py'
    done = run_tool('convert_weights.py', zoo.CONFIGS.parent / config, 'theirs.pth', 'ours.pth', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = build_model(zoo.load(config.removeprefix('configs/'))).eval()
    model.load_state_dict(torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict'])
    x = torch.rand(2, 3, 32, 32)
    expected = theirs(x)
    assert (model(x, mode='tensor') - expected).abs().max() / expected.abs().max() < 1e-5


def test_a_bias_of_another_size_is_named(tmp_path):
    torch.save(Theirs(16, (1, 1, 1), 2, side=10, classes=10, cifar=True).state_dict(), tmp_path / 'theirs.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'theirs.pth'))
    with pytest.raises(ValueError, match=r'layer1.0.spatial_bias.mix.weight has shape \(100, 100, 3\)'):
        SBResNetCifar(11, init_cfg=init_cfg).init_weights()
