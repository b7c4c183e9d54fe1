"""A bias in networks of timm, for every type of block: the same function at first, the formula, what users do."""

import copy
import io
import os
import subprocess
from pathlib import Path

import pytest
import timm
import torch
import warm
from mmengine.utils import digit_version
from timm.models import regnet
from torch import nn

import mmsb
from mmsb.models import SBResNet
from mmsb.models.any_network import BLOCKS, Maps, type_name
from mmsb.models.deploy import switch_to_deploy

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))
SMALL = dict(layers=(1, 1, 1, 1), channels=(16, 16, 32, 32))  # of bottlenecks
TWO_STAGES = dict(layers=(1, 1, 1, 1), features_only=True, out_indices=(1, 2))  # the senets' widths are fixed


def small_regnet(**options):
    return regnet.RegNet(regnet.RegNetCfg(depth=8, w0=16, wa=16.0, wm=2.0, group_size=8, **options))


NETWORKS = {  # type of block: a small network that has it, its name in timm or a function, and arguments
    'timm.models.byobnet.BasicBlock': ('test_byobnet', {}),
    'timm.models.byobnet.BottleneckBlock': ('test_byobnet', {}),
    'timm.models.byobnet.DarkBlock': ('test_byobnet', {}),
    'timm.models.byobnet.EdgeBlock': ('test_byobnet', {}),
    'timm.models._efficientnet_blocks.CondConvResidual': (
        'efficientnet_cc_b0_4e',
        dict(features_only=True, out_indices=(3,), drop_rate=0),
    ),
    'timm.models._efficientnet_blocks.DepthwiseSeparableConv': ('lcnet_035', {}),
    'timm.models._efficientnet_blocks.EdgeResidual': ('test_efficientnet', {}),
    'timm.models._efficientnet_blocks.InvertedResidual': ('test_efficientnet', {}),
    'timm.models._efficientnet_blocks.UniversalInvertedResidual': ('mobilenetv4_conv_small_035', {}),
    'timm.models.convnext.ConvNeXtBlock': ('test_convnext', {}),
    'timm.models.inception_next.MetaNeXtBlock': (
        'inception_next_atto',
        dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    ),
    'timm.models.regnet.Bottleneck': (small_regnet, {}),
    'timm.models.regnet.PreBottleneck': (small_regnet, dict(preact=True)),
    'timm.models.resnest.ResNestBottleneck': ('resnest14d', TINY),
    'timm.models.resnet.BasicBlock': ('test_resnet', {}),
    'timm.models.resnet.Bottleneck': ('resnet50', TINY),
    'timm.models.resnetv2.PreActBasic': ('resnetv2_18', TINY),
    'timm.models.resnetv2.PreActBottleneck': ('resnetv2_50', SMALL | dict(stem_chs=16)),
    'timm.models.rexnet.LinearBottleneck': ('rexnet_100', dict(width_mult=0.3, depth_mult=0.5, drop_rate=0)),
    'timm.models.senet.SEBottleneck': ('legacy_senet154', TWO_STAGES | dict(out_indices=(1,))),
    'timm.models.senet.SEResNetBlock': ('legacy_seresnet18', TWO_STAGES),
    'timm.models.senet.SEResNetBottleneck': ('legacy_seresnet50', TWO_STAGES),
    'timm.models.senet.SEResNeXtBottleneck': ('legacy_seresnext50_32x4d', TWO_STAGES),
    'timm.models.sknet.SelectiveKernelBasic': ('skresnet18', TINY),
    'timm.models.sknet.SelectiveKernelBottleneck': ('skresnet50', SMALL),
}
RESNET, CONVNEXT = 'timm.models.resnet.Bottleneck', 'timm.models.convnext.ConvNeXtBlock'
INVERTED = 'timm.models._efficientnet_blocks.InvertedResidual'
every_type = pytest.mark.parametrize('kind', BLOCKS)
NEEDS_EXPORT = pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.6'), reason='needs PyTorch 2.6')


def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def plain(kind):
    torch.manual_seed(0)
    make, options = NETWORKS[kind]
    return (make(**options) if callable(make) else timm.create_model(make, **options)).eval()


def add(net, kind):
    """Give a network a bias that its blocks of this type get, too; where these are elsewhere, say the stride."""
    stages = (32,) if kind == 'timm.models.byobnet.BottleneckBlock' else None
    mmsb.add_spatial_bias(net, stages, num_maps=2)
    assert kind in {type_name(block) for block in biased(net)}
    return net


def trained(kind):
    """Build a network with statistics and a bias as after a training."""
    net = add(plain(kind), kind)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
    for block in biased(net):
        nn.init.normal_(block.bias_conv.weight)
    return net


def biased(net):
    return [module for module in net.modules() if hasattr(module, 'bias_conv')]


def out(net):
    """Run a network on the image, in the network's type; where it returns several maps, join them."""
    outs = net(image().to(next(net.parameters()).dtype))
    return outs if torch.is_tensor(outs) else torch.cat([value.flatten() for value in outs])


def train(net, steps=1):
    optimizer = torch.optim.SGD(net.train().parameters(), lr=1e-3)  # at 0.1 the loss explodes and saturates ReLU6
    for _ in range(steps):
        optimizer.zero_grad()
        out(net).square().mean().backward()
        optimizer.step()
    return net


def test_every_type_of_block_has_a_network():
    assert list(NETWORKS) == list(BLOCKS)


@every_type
def test_it_starts_as_the_same_function_and_learns(kind):
    net = plain(kind)
    names = set(net.state_dict())
    with torch.no_grad():
        expected = out(net)
        assert add(net, kind) is net
        assert torch.equal(out(net), expected)
    assert names < set(net.state_dict())
    train(net, steps=3)  # last norms leave zero, then bias_conv does, then the operator has a gradient
    new = {name: p for name, p in net.named_parameters() if name not in names}
    assert [name for name, p in new.items() if p.grad is None or not p.grad.any()] == []


class Wide(nn.Module):
    """A layer that reads the features and the maps as one concatenation, with one weight for both."""

    def __init__(self, reader, maps, bias_conv):
        super().__init__()
        self.reader, self.maps, self.bias_conv = reader, maps, bias_conv

    def forward(self, x):
        new, weight = self.bias_conv.weight, self.reader.weight
        if isinstance(self.reader, nn.Linear):
            maps = self.maps(x.shape[1:3]).permute(0, 2, 3, 1)
            weight = torch.cat([weight, new.flatten(1)], 1)
            return nn.functional.linear(torch.cat([x, maps], -1), weight, self.reader.bias)
        x = torch.cat([x, self.maps(x.shape[2:])], 1)
        return self.reader._conv_forward(x, torch.cat([weight, new], 1), self.reader.bias)


@pytest.mark.parametrize('kind', [kind for kind in BLOCKS if not kind.endswith('CondConvResidual')])
@torch.no_grad()
def test_equals_a_layer_that_reads_a_concatenation(kind):  # the reader that is left out mixes weights for each image
    net = trained(kind).double()
    expected = out(net)
    for block in biased(net):
        beside, reader = (block.get_submodule(path) for path in BLOCKS[type_name(block)])
        beside._forward_pre_hooks.clear()
        reader._forward_hooks.clear()
        seen = {}
        beside.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0]))

        def maps(size, block=block, seen=seen):
            return block.bias_norm(block.spatial_bias(seen['x'], tuple(size))).relu()

        parent, _, name = BLOCKS[type_name(block)][1].rpartition('.')
        setattr(block.get_submodule(parent), name, Wide(reader, maps, block.bias_conv))
    assert (out(net) - expected).abs().max() <= 1e-10 * expected.abs().max()


@every_type
def test_a_copy_has_a_bias_of_its_own(kind):
    net = trained(kind)
    file = io.BytesIO()
    torch.save(net, file)
    with torch.no_grad():
        expected = out(net)
        for again in (copy.deepcopy(net), torch.load(io.BytesIO(file.getvalue()), weights_only=False)):
            assert torch.equal(out(again), expected)
            for block in biased(again):
                block.bias_conv.weight *= -1
            assert not torch.equal(out(again), expected)
            assert torch.equal(out(net), expected)
    other = add(plain(kind), kind)
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(out(other), expected)
    train(other)
    assert all(block.bias_conv.weight.grad.any() for block in biased(other))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_interrupted_pass_is_in_no_copy():
    net = trained(RESNET).train()
    beside, reader = (biased(net)[0].get_submodule(path) for path in BLOCKS[RESNET])
    reader.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        out(net)
    again = copy.deepcopy(net)
    maps = [hook.__self__ for hook in beside._forward_pre_hooks.values()]
    assert [hook.x.shape for hook in maps] == [(2, 8, 16, 16)]
    maps = [hook.__self__ for hook in biased(again)[0].conv2._forward_pre_hooks.values()]
    assert [(type(hook), hook.x, hook.block) for hook in maps] == [(Maps, None, biased(again)[0])]


@pytest.mark.parametrize('kind', [RESNET, CONVNEXT, INVERTED, 'timm.models.byobnet.DarkBlock'])
def test_checkpointing_changes_no_gradient(kind):
    net = trained(kind).train()
    again = copy.deepcopy(net)
    again.set_grad_checkpointing(True)
    for one in (net, again):
        out(one).square().mean().backward()
    gradients = [{name: p.grad for name, p in one.named_parameters()} for one in (net, again)]
    assert all(gradients[0][f'{path}.bias_conv.weight'].any() for path, m in net.named_modules() if m in biased(net))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@every_type
@torch.no_grad()
def test_folding_keeps_the_function(kind):
    """The layers that are summed, or whose norm has an activation inside, are left as they are."""
    net = trained(kind).double()
    before = out(net)
    assert (out(switch_to_deploy(net)) - before).abs().max() <= 1e-9 * before.abs().max()
    assert not [module for module in net.modules() if type(module) is nn.BatchNorm2d]


@pytest.mark.parametrize('kind', [RESNET, CONVNEXT])
@torch.no_grad()
def test_compiles_to_one_graph(kind):
    net = trained(kind).double()
    expected = out(net)
    torch.testing.assert_close(out(torch.compile(net, backend='eager', fullgraph=True)), expected, rtol=1e-9, atol=1e-9)


def test_a_compiled_block_trains():
    block, x = biased(trained(RESNET).double())[1], torch.randn(2, 32, 16, 16, dtype=torch.double)
    expected = [block(x), *torch.autograd.grad(block(x).square().mean(), block.bias_conv.weight)]
    compiled = torch.compile(block, backend='aot_eager', fullgraph=True)
    found = [y := compiled(x), *torch.autograd.grad(y.square().mean(), block.bias_conv.weight)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@NEEDS_EXPORT
@pytest.mark.parametrize('kind', [RESNET, CONVNEXT])
@torch.no_grad()
def test_exports(kind):
    net = trained(kind).double()
    program = torch.export.export(net, (image().double(),))
    torch.testing.assert_close(program.module()(image().double()), out(net), rtol=1e-9, atol=1e-9)


DISTRIBUTED = """
import sys
sys.path[:0] = [{tests!r}, {models!r}]
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import test_any_network as here

rank = int(sys.argv[1])
dist.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=2)
for kind in (here.RESNET, here.CONVNEXT, here.INVERTED):
    net = here.trained(kind).double()  # in evaluation mode: statistics of a batch are those of a process
    both = DistributedDataParallel(net)
    for _ in range(2):
        net.zero_grad()
        both(here.image()[rank::2].double()).square().mean().backward()
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(here.image().double()).square().mean().backward()
    torch.testing.assert_close(ours, [p.grad for p in net.parameters()], rtol=1e-9, atol=1e-9)
print('the same')
"""


def test_two_processes_train_as_one(tmp_path):
    tests = ROOT / 'tests'
    (tmp_path / 'run.py').write_text(DISTRIBUTED.format(tests=str(tests), models=str(tests / 'models')))
    processes = [
        subprocess.Popen(
            [warm.python(), 'run.py', str(rank), tmp_path / 'store'],
            cwd=tmp_path,
            env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [text.splitlines()[-1:] for text in said] == [['the same']] * 2, '\n'.join(said)


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
    ('test_resnet', dict(stages=(5,)), ['stages', '5', '16']),
    ('test_resnet', dict(stages=16), ['stages', 'list', '16']),
    ('test_resnet', dict(stages=()), ['stages', 'list', '16']),
    ('test_resnet', dict(pol='max'), ['pol', 'pool']),
    ('test_resnet', dict(num_maps=0), ['num_maps', '0', 'at least 1']),
    ('test_resnet', dict(pool='mean'), ['pool', "'mean'", "'avg'", "'max'"]),
])  # fmt: skip
def test_mistakes_are_named_in_one_line(name, options, named):
    with pytest.raises(ValueError) as error:
        mmsb.add_spatial_bias(timm.create_model(name), **options)
    assert all(word in str(error.value) for word in named), error.value
    assert '\n' not in str(error.value)


def test_a_second_bias_is_refused():
    net = mmsb.add_spatial_bias(timm.create_model('test_resnet'))
    with pytest.raises(ValueError, match='has spatial bias already'):
        mmsb.add_spatial_bias(net)


@pytest.mark.parametrize('net', [nn.Sequential(nn.Conv2d(3, 8, 3)), 'resnet18', None])
def test_what_is_no_network_of_timm_is_named(net):
    with pytest.raises(ValueError, match=r'add_spatial_bias (does not know|needs a network)') as error:
        mmsb.add_spatial_bias(net)
    assert '\n' not in str(error.value)


def test_the_suggested_line_adds_a_type_of_block(monkeypatch):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise, self.norm, self.project = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.project(self.norm(self.depthwise(x)).relu())

    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Own(), Own())
    with pytest.raises(ValueError) as error:
        mmsb.add_spatial_bias(net)
    kind = str(error.value).partition("BLOCKS['")[2].partition("']")[0]
    monkeypatch.setitem(BLOCKS, kind, ('depthwise', 'expand'))
    with pytest.raises(ValueError, match=r"names 'expand'; modules of this block: depthwise, norm, project$"):
        mmsb.add_spatial_bias(net)
    monkeypatch.setitem(BLOCKS, kind, ('depthwise', 'project'))
    expected = net(image())
    assert torch.equal(mmsb.add_spatial_bias(net)(image()), expected)
    assert len(biased(net)) == 2


def test_a_network_that_fails_on_the_image_is_named():
    net = timm.create_model('test_resnet')
    net.conv1[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=r'cannot run ResNet on an image of 160x160 pixels .*: division by zero'):
        mmsb.add_spatial_bias(net)
