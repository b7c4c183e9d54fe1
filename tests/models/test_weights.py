"""Warm start: what is loaded from a checkpoint, what learns, what is frozen, and which files are refused.

Outputs are compared in float64: float32 rounds differently from kernel to kernel, and so from processor to processor.
"""

import copy
import functools
import http.server
import importlib
import os
import pathlib
import re
import shutil
import threading

import mmpretrain.models
import mmpretrain.registry
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import PretrainedInit
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.analysis.zoo import build_backbone
from mmsb.models import SBResNet, SBResNetCifar

NEW = ('spatial_bias', 'bias_norm', 'bias_conv')
BIASES = [
    dict(),
    dict(position='conv1', num_maps=2),
    dict(mix=False),
    dict(fusion='add'),
    dict(fusion='add', pool='max'),
]


def scramble_norms(net):
    for norm in [m for m in net.modules() if isinstance(m, _BatchNorm)]:
        for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
            nn.init.uniform_(value, 0.3, 1.2)
    return net


def plain_network():
    """mmpretrain's ResNet-50, narrow, as if it had been trained."""
    torch.manual_seed(0)
    return scramble_norms(mmpretrain.models.ResNet(50, base_channels=8, stem_channels=8, out_indices=(0, 1, 2, 3)))


def start(checkpoint, *, prefix=None, **options):
    torch.manual_seed(1)
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint)) | (dict(prefix=prefix) if prefix else {})
    net = SBResNet(**{'base_channels': 8, 'init_cfg': init_cfg, **options})
    net.init_weights()
    return net


def image():
    torch.manual_seed(2)
    return torch.randn(2, 3, 65, 47)


def outputs(net, training=False):
    net = copy.deepcopy(net).double()
    net.train(training)
    with torch.no_grad():
        return net(image().double())


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def step(net):
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=1e-4)
    sum((out * torch.rand_like(out)).mean() for out in net(image())).backward()
    optimizer.step()


def is_new(name):
    return any(part in NEW for part in name.split('.'))


def snapshot(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(net, before):
    after = net.state_dict()
    return {name for name, value in before.items() if not torch.equal(after[name], value)}


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp('plain') / 'resnet50.pth'
    torch.save(plain_network().state_dict(), path)
    return path


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp('trained') / 'sb_resnet50.pth'
    torch.manual_seed(3)
    torch.save(scramble_norms(SBResNet(base_channels=8)).state_dict(), path)
    return path


# Where weights come from: each function writes those of `state` as that source does.

HEAD = {'fc.weight': torch.ones(10, 256), 'fc.bias': torch.zeros(10)}


def torchvision_file(state, folder):
    torch.save(state | HEAD, folder / 'resnet50-0676ba61.pth')


def old_torchvision_file(state, folder):
    kept = {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')}
    torch.save(kept | HEAD, folder / 'resnet50-19c8e357.pth', _use_new_zipfile_serialization=False)


def timm_file(state, folder):
    safetensors.torch.save_file(state | HEAD, folder / 'model.safetensors')


def timm_training_file(state, folder):
    torch.save(dict(epoch=7, arch='resnet50', state_dict=state | HEAD, metric=76.1), folder / 'model_best.pth.tar')


def mm_file(state, folder):
    hub = MessageHub.get_instance('test_weights')
    for i in range(3):
        hub.update_scalars({'train/lr': 0.1, 'train/loss': torch.tensor(1.5 / (i + 1)), 'train/n': 4})
    hub.update_info_dict(dict(epoch=1, iter=3, max_epochs=100, loop_stage='train', cfg='model = dict()'))
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    backbone = {f'backbone.{key}': value for key, value in state.items()}
    content = dict(
        meta=dict(epoch=1, iter=3, seed=0, cfg='model = dict()', dataset_meta=dict(classes=('cat', 'dog'))),
        state_dict=backbone | {'head.fc.weight': HEAD['fc.weight'], 'neck.conv1.weight': torch.ones(2)},
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[schedule.state_dict()],
    )
    assert isinstance(content['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    torch.save(content, folder / 'epoch_1.pth')


def data_parallel_file(state, folder):
    torch.save({f'module.{key}': value for key, value in (state | HEAD).items()}, folder / 'latest.pt')


def half_file(state, folder):
    torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()}, folder / 'x'
    )


SOURCES = [
    torchvision_file,
    old_torchvision_file,
    timm_file,
    timm_training_file,
    mm_file,
    data_parallel_file,
    half_file,
]


@pytest.mark.parametrize('fusion', ['concat', 'add'])
@pytest.mark.parametrize('write', SOURCES)
def test_starts_as_the_plain_network_of_any_source(write, fusion, tmp_path):
    theirs = plain_network()
    write(theirs.state_dict(), tmp_path)
    if write is half_file:
        theirs.half().float()
    ours = start(*tmp_path.iterdir(), spatial_bias=dict(fusion=fusion))
    assert all(
        value.dtype == theirs.state_dict()[key].dtype for key, value in ours.state_dict().items() if not is_new(key)
    )
    same(outputs(ours), outputs(theirs))


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('bias', [*BIASES[:2], *BIASES[3:]])
def test_starts_as_the_plain_network_with_any_bias(plain, bias, training):
    ours = outputs(start(plain, spatial_bias=bias), training)
    same(ours, outputs(plain_network(), training))


def test_starts_as_torchvisions_resnet50_in_full_width(tmp_path):
    torch.manual_seed(0)
    theirs = scramble_norms(torchvision.models.resnet50()).eval()
    torch.save(theirs.state_dict(), tmp_path / 'resnet50.pth')
    ours = start(tmp_path / 'resnet50.pth', base_channels=64)
    pooled = outputs(ours)[-1].mean((2, 3))
    theirs.double()
    with torch.no_grad():
        same(theirs.fc(pooled), theirs(image().double()))


@pytest.mark.parametrize(('name', 'options'), [
    ('resnet18', dict(depth=18)),
    ('resnet50', dict()),
    ('resnet50d', dict(deep_stem=True, avg_down=True)),
    ('resnext50_32x4d', dict(groups=32, base_width=4)),
    ('wide_resnet50_2', dict(base_width=128)),
])  # fmt: skip
def test_starts_as_timms_network(name, options, tmp_path):
    torch.manual_seed(0)
    theirs = scramble_norms(timm.create_model(name)).eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / 'model.safetensors')
    ours = outputs(start(tmp_path / 'model.safetensors', base_channels=64, **options))
    with torch.no_grad():
        theirs = theirs.double().forward_intermediates(image().double(), intermediates_only=True)[1:]
    same(list(ours), theirs)


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('library', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize(('kind', 'options'), [
    ('ResNet', dict()),
    ('ResNetV1c', dict(deep_stem=True)),
    ('ResNetV1d', dict(deep_stem=True, avg_down=True)),
])  # fmt: skip
def test_starts_as_the_network_of_each_library(kind, options, library, depth, tmp_path):
    backbones = importlib.import_module(f'{library}.models.backbones')
    narrow = dict(base_channels=8, stem_channels=8, out_indices=(0, 1, 2, 3))
    if hasattr(backbones, kind):
        theirs = getattr(backbones, kind)(depth=depth, **narrow)
    else:  # mmdet has no V1c
        theirs = backbones.ResNet(depth, **narrow, **options)
    theirs = scramble_norms(theirs)
    torch.save({f'backbone.{key}': value for key, value in theirs.state_dict().items()}, tmp_path / 'plain.pth')
    ours = start(tmp_path / 'plain.pth', depth=depth, **options)
    same(outputs(ours), outputs(theirs))


@pytest.mark.parametrize(('library', 'kind', 'theirs', 'ours'), [
    ('mmpretrain', 'ResNeXt', dict(groups=4, width_per_group=8), dict(groups=4, base_width=8)),
    ('mmdet', 'ResNeXt', dict(groups=4, base_width=8), dict(groups=4, base_width=8)),
    ('mmseg', 'ResNeXt', dict(groups=4, base_width=8), dict(groups=4, base_width=8)),
    ('mmpretrain', 'ResNet', dict(style='caffe'), dict(style='caffe')),
    ('mmdet', 'ResNet', dict(style='caffe'), dict(style='caffe')),
    ('mmseg', 'ResNet', dict(style='caffe'), dict(style='caffe')),
])  # fmt: skip
def test_starts_as_the_variant_of_each_library(library, kind, theirs, ours, tmp_path):
    make = getattr(importlib.import_module(f'{library}.models.backbones'), kind)
    torch.manual_seed(0)
    plain = scramble_norms(make(depth=50, base_channels=16, stem_channels=16, out_indices=(0, 1, 2, 3), **theirs))
    torch.save({f'backbone.{key}': value for key, value in plain.state_dict().items()}, tmp_path / 'plain.pth')
    net = start(tmp_path / 'plain.pth', base_channels=16, **ours)
    same(outputs(net), outputs(plain))


def test_pretrained_is_short_for_init_cfg(plain):
    net = start(plain, init_cfg=None, pretrained=str(plain))
    same(outputs(net), outputs(plain_network()))


def test_prefix_names_the_part_of_a_whole_model(plain, tmp_path):
    state = torch.load(plain)
    torch.save({f'teacher.{key}': value for key, value in state.items()} | HEAD, tmp_path / 'whole.pth')
    for prefix in ('teacher', 'teacher.'):
        net = start(tmp_path / 'whole.pth', prefix=prefix)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_fewer_stages_take_the_weights_that_they_have(plain):
    net = start(plain, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1))
    same(outputs(net), outputs(plain_network())[:3])


def test_warm_start_inside_a_classifier_of_mmpretrain(plain):
    backbone = dict(type='mmsb.SBResNet', base_channels=8, init_cfg=dict(type='Pretrained', checkpoint=str(plain)))
    head = dict(type='LinearClsHead', num_classes=10, in_channels=256)
    cfg = dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    model = mmpretrain.registry.MODELS.build(cfg)
    model.init_weights()
    same(outputs(model.backbone), outputs(plain_network()))


@pytest.mark.parametrize('source', ['plain', 'trained', None])
def test_init_weights_twice_changes_nothing(source, request):
    net = start(request.getfixturevalue(source)) if source else start('', init_cfg=None)
    scramble_norms(net)
    before = snapshot(net)
    net.init_weights()
    assert changed(net, before) == set()


def test_from_scratch_the_bias_has_a_say():
    net = start('', init_cfg=None, zero_init_residual=False)
    assert all(block.bias_conv.weight.any() for block in net.modules() if hasattr(block, 'bias_conv'))


# What learns.


@pytest.mark.parametrize('bias', [*BIASES[:2], *BIASES[3:]])
def test_a_silent_bias_learns(plain, bias):
    net = start(plain, spatial_bias=bias)
    blocks = [block for block in net.modules() if hasattr(block, 'spatial_bias')]
    silent = [block.spatial_bias.mix if bias.get('fusion') == 'add' else block.bias_conv for block in blocks]
    assert len(blocks) == 13
    assert not any(layer.weight.any() for layer in silent)
    step(net)
    assert all(layer.weight.any() for layer in silent)
    with_bias = outputs(net)
    for block in blocks:
        block.zero_bias()
    assert not any(map(torch.allclose, with_bias, outputs(net)))


def test_a_bias_that_could_never_learn_is_refused(plain):
    with pytest.raises(ValueError, match=r"fusion='add' with mix=False"):
        start(plain, spatial_bias=dict(fusion='add', mix=False))


def test_frozen_stages_spare_an_untrained_bias(plain):
    net = start(plain, frozen_stages=1, norm_eval=True)
    before = snapshot(net)
    step(net)
    frozen = {name: p for name, p in net.named_parameters() if name.startswith(('conv1', 'bn1', 'layer1.'))}
    assert {name for name, p in frozen.items() if p.requires_grad} == {name for name in frozen if is_new(name)}
    after = changed(net, before)
    assert {name for name in after if name.startswith(('conv1', 'bn1', 'layer1.')) and not is_new(name)} == set()
    statistics = {name for name in before if name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))}
    assert {name for name in statistics if is_new(name)} == after & statistics
    assert {name for name in after if name.startswith('layer1.')} >= {f'layer1.{i}.bias_conv.weight' for i in range(3)}

    step(net)  # the gradient reaches the operator only through a bias_conv that is no longer zero
    assert {name for name in frozen if is_new(name)} <= changed(net, before)


def test_frozen_stages_freeze_a_trained_bias(trained):
    net = start(trained, frozen_stages=1, norm_eval=True)
    before = snapshot(net)
    step(net)
    assert not any(p.requires_grad for p in net.layer1.parameters())
    assert not any(module.training for module in net.layer1.modules())
    assert not any(module.training for module in net.modules() if isinstance(module, _BatchNorm))
    after = changed(net, before)
    assert not any(name.startswith(('conv1', 'bn1', 'layer1.')) for name in after)
    assert any(name.startswith('layer2.0.bias_conv') for name in after)


@pytest.mark.parametrize('source', ['plain', 'trained'])
@pytest.mark.parametrize('options', [dict(), dict(frozen_stages=1, norm_eval=True)])
def test_eval_is_for_all(source, options, request):
    net = start(request.getfixturevalue(source), **options)
    assert net.train() is net
    assert net.training
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    before = snapshot(net)
    net(image())
    assert changed(net, before) == set()


def test_a_checkpoint_of_an_sb_resnet_comes_back_whole(trained):
    state, net = torch.load(trained), start(trained)
    assert state.keys() == net.state_dict().keys()
    assert changed(net, state) == set()


# Plugins and other layers in the place of the 3x3 convolution.

SE = dict(plugins=[dict(cfg=dict(type='mmsb.SE', ratio=4), position='after_conv3')])
NL = dict(plugins=[dict(cfg=dict(type='mmsb.NL'), position='after_block')])


DCN = dict(dcn=dict(type='DCN'), stage_with_dcn=(True, True, True, True))


@pytest.mark.parametrize('bias', [None, dict()])
def test_plain_weights_start_deformable_convolutions_as_plain_ones(plain, bias):
    net = start(plain, frozen_stages=1, spatial_bias=bias, **DCN)
    same(outputs(net), outputs(plain_network()))
    before = snapshot(net)
    step(net)
    frozen = {name for name in changed(net, before) if name.startswith('layer1.') and not is_new(name)}
    assert frozen == {f'layer1.{i}.conv2.conv_offset.{kind}' for i in range(3) for kind in ('weight', 'bias')}


def test_trained_offsets_come_back_and_are_frozen(tmp_path):
    trained = scramble_norms(SBResNet(base_channels=8, **DCN))
    for name, value in trained.named_parameters():
        if 'conv_offset' in name:
            nn.init.normal_(value, std=0.3)
    torch.save(trained.state_dict(), tmp_path / 'dcn.pth')
    net = start(tmp_path / 'dcn.pth', frozen_stages=1, **DCN)
    assert changed(net, trained.state_dict()) == set()
    assert not any(p.requires_grad for p in net.layer1.parameters())
    with pytest.raises(ValueError, match=r'the network has no layer1\.0\.conv2\.conv_offset\.\S+ and \d+ more'):
        start(tmp_path / 'dcn.pth')


@pytest.fixture(scope='module')
def trained_se(tmp_path_factory):
    path = tmp_path_factory.mktemp('trained') / 'se_resnet50.pth'
    torch.manual_seed(4)
    torch.save(scramble_norms(SBResNet(base_channels=8, spatial_bias=None, **SE)).state_dict(), path)
    return path


def test_a_block_without_effect_starts_as_the_plain_network(plain):
    same(outputs(start(plain, **NL)), outputs(plain_network()))


@pytest.mark.parametrize('bias', [None, dict()])
def test_frozen_stages_spare_an_untrained_plugin(plain, bias):
    net = start(plain, frozen_stages=1, norm_eval=True, spatial_bias=bias, **NL)
    before = snapshot(net)
    step(net), step(net)  # in the first step, the scale of its norm is zero
    after = {name for name in changed(net, before) if name.startswith(('conv1', 'bn1', 'layer1.'))}
    assert {name for name in after if 'nl' not in name and not is_new(name)} == set()
    assert {
        f'layer1.0.nl.{name}' for name in ('g.conv.weight', 'conv_out.bn.weight', 'conv_out.bn.running_var')
    } <= after
    assert ('layer1.0.bias_conv.weight' in after) == (bias is not None)


def test_frozen_stages_freeze_a_trained_plugin(trained_se):
    state = torch.load(trained_se)
    net = start(trained_se, frozen_stages=1, **SE)  # its bias is new
    assert net.state_dict().keys() > state.keys()
    assert changed(net, state) == set()
    step(net)
    after = {name for name in changed(net, state) if name.startswith('layer1.')}
    assert after == set()
    assert {name for name, p in net.layer1.named_parameters() if p.requires_grad} == {
        name for name, _ in net.layer1.named_parameters() if is_new(name)
    }


def test_a_plugin_is_in_a_checkpoint_as_a_whole(trained_se, tmp_path):
    state = torch.load(trained_se)
    del state['layer2.1.se.block.conv2.conv.bias']
    torch.save(state, tmp_path / 'part.pth')
    with pytest.raises(ValueError, match=r'it has no layer2\.1\.se\.block\.conv2\.conv\.bias$'):
        start(tmp_path / 'part.pth', **SE)
    with pytest.raises(ValueError, match=r'the network has no layer1\.0\.se\.\S+ and \d+ more'):
        start(trained_se)


NO_GRADIENT = dict(type='BN', requires_grad=False)

# What is frozen is determined when the network is built, wherever the checkpoint is.


@pytest.fixture
def site(plain, trained, tmp_path, monkeypatch):
    """Serve both checkpoints from a web server with an empty download cache; yield its address."""
    (tmp_path / 'site').mkdir()
    for path in (plain, trained):
        shutil.copy(path, tmp_path / 'site')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / 'site')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    yield f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown()


@pytest.mark.parametrize('source', ['plain', 'trained'])
def test_a_checkpoint_from_the_web_starts_as_the_local_one(source, site, request):
    file = request.getfixturevalue(source)
    local, remote = (start(path, frozen_stages=1, norm_eval=True) for path in (file, f'{site}/{file.name}'))
    assert changed(remote, snapshot(local)) == set()
    assert remote.new_parts == local.new_parts
    for nets in zip(local.modules(), remote.modules(), strict=True):
        assert nets[0].training == nets[1].training
    for parameters in zip(local.parameters(), remote.parameters(), strict=True):
        assert parameters[0].requires_grad == parameters[1].requires_grad
    assert local.layer1[0].bias_conv.weight.requires_grad == (source == 'plain')


@pytest.mark.parametrize('source', ['plain', 'trained'])
@pytest.mark.parametrize(
    'options', [dict(), dict(norm_eval=True), dict(frozen_stages=0), dict(frozen_stages=-1, norm_cfg=NO_GRADIENT), SE]
)
def test_initialising_changes_nothing_of_what_is_frozen(source, options, request):
    """MMEngine wraps the network and builds the optimizer in between."""
    init_cfg = dict(type='Pretrained', checkpoint=str(request.getfixturevalue(source)))
    net = SBResNet(base_channels=8, init_cfg=init_cfg, **{'frozen_stages': 1, **options})
    before = [p.requires_grad for p in net.parameters()], [module.training for module in net.modules()]
    net.init_weights()
    net.train()
    assert before == ([p.requires_grad for p in net.parameters()], [module.training for module in net.modules()])


@pytest.mark.parametrize('options', [dict(frozen_stages=1), dict(norm_eval=True), dict(norm_cfg=NO_GRADIENT)])
@pytest.mark.parametrize('bias', [dict(), None])
def test_a_missing_file_never_decides_what_is_frozen(options, bias, tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'gone.pth'))
    if bias is None:  # nothing to decide: the error comes when the weights are needed
        net = SBResNet(base_channels=8, spatial_bias=None, init_cfg=init_cfg, **options)
        with pytest.raises(FileNotFoundError, match=r'gone\.pth'):
            net.init_weights()
    else:
        with pytest.raises(FileNotFoundError, match=r'gone\.pth'):
            SBResNet(base_channels=8, init_cfg=init_cfg, **options)


def test_a_network_to_count_reads_no_checkpoint():
    checkpoint = 'http://127.0.0.1:9/nothing.pth'
    with torch.device('meta'):
        net = SBResNet(base_channels=8, frozen_stages=1, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    assert next(net.parameters()).is_meta


def test_analysis_builds_a_backbone_without_its_checkpoint():
    backbone = dict(type='mmsb.SBResNetCifar', depth=11, frozen_stages=1, pretrained='http://127.0.0.1:9/nothing.pth')
    assert build_backbone(Config(dict(model=dict(backbone=backbone)))).pretrained_cfg is None


@pytest.mark.parametrize('source', ['plain', 'trained'])
def test_a_network_of_the_meta_device_learns_what_is_frozen_when_it_is_initialised(source, request):
    init_cfg = dict(type='Pretrained', checkpoint=str(request.getfixturevalue(source)))
    with torch.device('meta'):
        net = SBResNet(base_channels=8, frozen_stages=1, init_cfg=init_cfg)
    net.to_empty(device='cpu').init_weights()
    expected = start(init_cfg['checkpoint'], frozen_stages=1)
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in expected.parameters()]
    assert [module.training for module in net.modules()] == [module.training for module in expected.modules()]


@pytest.mark.parametrize('source', ['plain', 'trained', 'trained_se'])
def test_a_training_goes_on_without_the_checkpoint_that_it_started_from(source, request):
    options = dict(frozen_stages=1, norm_eval=True, **SE)
    if source != 'trained_se':
        options['plugins'] = None
    net = start(request.getfixturevalue(source), **options)
    resumed = SBResNet(base_channels=8, **options)
    resumed.spare(net.new_parts)
    resumed.load_state_dict(net.state_dict())
    for one in (net, resumed):
        torch.manual_seed(5)
        step(one), step(one)
    assert [module.training for module in net.modules()] == [module.training for module in resumed.modules()]
    assert changed(resumed, snapshot(net)) == set()


@pytest.fixture
def process_group():
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('source', ['plain', 'trained'])
@pytest.mark.usefixtures('process_group')
def test_a_wrapped_network_never_waits_for_what_is_frozen(source, site, request):
    """In MMEngine's order: build, wrap, make the optimizer, initialise, train."""
    checkpoint = f'{site}/{request.getfixturevalue(source).name}'
    net = SBResNet(base_channels=8, frozen_stages=1, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    wrapped = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-2)
    net.init_weights()
    net.train()
    before = snapshot(net)
    for _ in range(2):  # a parameter without a gradient is an error in the second forward
        optimizer.zero_grad()
        sum(out.square().mean() for out in wrapped(image())).backward()
        optimizer.step()
    learnt = {name for name in changed(net, before) if name.startswith(('conv1', 'bn1', 'layer1.'))}
    assert all(is_new(name) for name in learnt)
    assert ('layer1.0.bias_conv.weight' in learnt) == (source == 'plain')


@pytest.mark.parametrize('options', [dict(), dict(groups=2, base_width=4)])
def test_3x3_convolutions_do_not_fit_selective_kernels(options, plain):
    with pytest.raises(ValueError) as error:
        start(plain, conv2=dict(type='mmsb.SK'), **options)
    assert all(word in str(error.value) for word in (str(plain), '3x3 convolutions', 'SK', 'from scratch'))
    assert '\n' not in str(error.value)


def test_selective_kernels_come_back_whole(tmp_path):
    trained = scramble_norms(SBResNet(base_channels=8, spatial_bias=None, conv2=dict(type='mmsb.SK')))
    torch.save(trained.state_dict(), tmp_path / 'sk.pth')
    net = start(tmp_path / 'sk.pth', conv2=dict(type='mmsb.SK'), frozen_stages=1)
    assert changed(net, trained.state_dict()) == set()
    assert not any(p.requires_grad for p in net.layer1[0].conv2.parameters())
    same(outputs(net), outputs(trained))


# What is refused.


class Call:
    """Pickles as a function call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args

    def __call__(self):
        raise AssertionError('only here so that a call can be the function of another')


UNTRUSTED = pytest.mark.untrusted


def narrower(state):
    return mmpretrain.models.ResNet(50, base_channels=4, stem_channels=4).state_dict()


def deeper(state):
    return mmpretrain.models.ResNet(101, base_channels=8, stem_channels=8).state_dict()


@pytest.mark.parametrize(
    ('content', 'options', 'named'),
    [
        (deeper, dict(), ['layer3.6.conv1.weight', 'has no']),
        (lambda state: state, dict(depth=101), ['layer3.6.conv1.weight', 'has no']),
        (narrower, dict(), ['conv1.weight', '(4, 3, 7, 7)', '(8, 3, 7, 7)']),
        (lambda state: state, dict(in_channels=1), ['conv1.weight', '(8, 3, 7, 7)', '(8, 1, 7, 7)']),
        (lambda state: state, dict(deep_stem=True), ['conv1.weight']),
        (lambda state: {'layer1.0.conv4.weight': torch.ones(1), **state}, dict(), ['layer1.0.conv4.weight']),
        (lambda state: {k: v for k, v in state.items() if k != 'bn1.bias'}, dict(), ['bn1.bias']),
        (lambda state: {}, dict(), ['state dict']),
        (lambda state: dict(state_dict={}), dict(), ['state dict']),
        (lambda state: [1, 2], dict(), ['state dict']),
        (lambda state: HEAD, dict(), ['ResNet weights', 'conv1.weight']),
        (lambda state: {'backbone.blocks.0.qkv.weight': torch.ones(1)}, dict(), ['ResNet weights', 'backbone']),
        (lambda state: state, dict(prefix='teacher'), ['ResNet weights', "'teacher"]),
        *(
            pytest.param(lambda state, run=run: dict(state_dict=state, run=run), dict(), named, marks=UNTRUSTED)
            for run, named in (
                (Call(os.system, 'true'), ['cannot be read as data', 'system']),
                (Call(getattr, HistoryBuffer, '__init__'), ['__init__']),
                (Call(getattr, torch.Tensor, 'map_'), ['map_']),
                (Call(eval, '1'), ['eval']),
            )
        ),
    ],
)
def test_contents_that_do_not_fit_are_named_in_one_line(content, options, named, plain, tmp_path):
    path = tmp_path / 'checkpoint.pth'
    torch.save(content(torch.load(plain)), path)
    with pytest.raises(ValueError) as error:
        start(path, **options)
    assert all(word in str(error.value) for word in (str(path), *named)), error.value
    assert '\n' not in str(error.value)


def test_a_trained_bias_does_not_fit_a_plain_network(trained):
    with pytest.raises(ValueError, match=r'layer1\.0\.(spatial_bias|bias_)'):
        start(trained, spatial_bias=None)


def test_a_trained_bias_of_another_size_does_not_fit(trained):
    with pytest.raises(ValueError, match=r'layer1\.0\.\S+ has shape .* needs'):
        start(trained, spatial_bias=dict(num_maps=2))


@pytest.mark.parametrize('name', ['missing.pth', 'missing.safetensors', 'folder/', ''])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        start(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('write', [torchvision_file, old_torchvision_file, timm_file])
@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named_in_one_line(write, share, tmp_path):
    write(plain_network().state_dict(), tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError) as error:
        start(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize(
    'text',
    [
        'version https://git-lfs.github.com/spec/v1\noid sha256:0676ba61\nsize 102530333\n',
        '<!DOCTYPE html>\n<html>404: not found</html>\n',
        '{"error": "rate limit"}\n',
        'a text file\n',
        'Not found\n',
        '\n\n',
    ],
)
def test_a_text_file_is_named_in_one_line(text, suffix, tmp_path):
    path = tmp_path / f'resnet50.{suffix}'
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        start(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'attack',
    [
        lambda marker: Call(os.system, f'touch {marker}'),
        lambda marker: Call(exec, f'open({marker!r}, "w")'),
        lambda marker: Call(open, marker, 'w'),
        lambda marker: Call(Call(getattr, Call(__import__, 'os'), 'mkdir'), marker),
    ],
)
@pytest.mark.parametrize('zipped', [True, False])
@UNTRUSTED
def test_a_file_runs_no_code(attack, zipped, plain, tmp_path):
    marker, path = tmp_path / 'marker', tmp_path / 'checkpoint.pth'
    content = dict(state_dict=torch.load(plain), run=attack(str(marker)))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match='cannot be read as data'):
        start(path)
    assert not marker.exists()


@pytest.mark.parametrize('kind', ['Pretrained', 'mmengine.Pretrained', PretrainedInit])
@pytest.mark.parametrize('path', [str, pathlib.Path])
def test_every_spelling_of_pretrained_is_a_warm_start(kind, path, tmp_path):
    torch.save(SBResNetCifar(11, None).state_dict(), tmp_path / 'plain.pth')
    net = SBResNetCifar(11, init_cfg=dict(type=kind, checkpoint=path(tmp_path / 'plain.pth')), frozen_stages=1)
    net.init_weights()
    assert 'layer1.0.spatial_bias' in net.new_parts
    assert not net.layer1[0].bias_conv.weight.any()


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    trained = SBResNetCifar(11)
    torch.save(trained.state_dict(), tmp_path / 'sb.pth')
    net = SBResNetCifar(11, init_cfg=dict(type='Pretrained', checkpoint='~/sb.pth'), norm_eval=True)
    assert net.new_parts == []
    net.init_weights()
    assert torch.equal(net.layer1[0].bias_conv.weight, trained.layer1[0].bias_conv.weight)


def test_weights_of_caffe_and_of_group_norm_fit(tmp_path):
    plain = SBResNet(spatial_bias=None, base_channels=32, norm_cfg=dict(type='GN', num_groups=32))
    state = {re.sub(r'bn(?=\d\.)', 'gn', key): value for key, value in plain.state_dict().items()}
    torch.save({**state, 'conv1.bias': torch.zeros(32)}, tmp_path / 'gn.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'gn.pth'))
    net = SBResNet(base_channels=32, norm_cfg=dict(type='GN', num_groups=32), init_cfg=init_cfg)
    net.init_weights()
    same(outputs(net), outputs(plain))


def test_a_deep_stem_that_was_forgotten_is_guessed(tmp_path):
    torch.save(SBResNet(spatial_bias=None, base_channels=16, deep_stem=True).state_dict(), tmp_path / 'v1c.pth')
    net = SBResNet(base_channels=16, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'v1c.pth')))
    with pytest.raises(ValueError, match='did you mean deep_stem=True'):
        net.init_weights()
