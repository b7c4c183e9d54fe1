"""sb_resnet18 ... 152 in timm: what timm's own tests check of its networks, with timm's ResNet as the measure."""

import copy
import io
import shutil
from inspect import signature

import pytest
import timm
import torch
from timm.models import group_parameters, save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, freeze, unfreeze
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmsb
from mmsb.models.bottleneck import BIAS_PARTS

DEPTHS = (18, 50)
OPTIONS = [
    dict(),
    dict(num_classes=7),
    dict(num_classes=0),
    dict(num_classes=0, global_pool=''),
    dict(in_chans=1, drop_rate=0.2, drop_path_rate=0.1),
    dict(global_pool='catavgmax'),
    dict(output_stride=16),
    dict(output_stride=8),
]
OTHER_NAMES = {'act1'}  # a module without weights


def image(channels=3, size_px=(64, 48), dtype=torch.float64, **options):
    return torch.randn(2, channels, *size_px, generator=torch.Generator().manual_seed(1)).to(dtype=dtype, **options)


def scramble_norms(net):
    for norm in [m for m in net.modules() if isinstance(m, _BatchNorm)]:
        for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
            nn.init.uniform_(value, 0.3, 1.2)
    return net.eval()


def scramble_bias(net):
    for block in [module for module in net.modules() if hasattr(module, 'bias_conv')]:
        nn.init.normal_(block.bias_conv.weight, std=0.1)
    return net


@pytest.fixture(scope='module', params=DEPTHS)
def depth(request):
    return request.param


@pytest.fixture(scope='module')
def net(depth):
    torch.manual_seed(0)
    return scramble_bias(scramble_norms(timm.create_model(f'sb_resnet{depth}', num_classes=7))).double()


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    """A network of timm, and a file of its weights."""
    torch.manual_seed(0)
    net = scramble_norms(timm.create_model('resnet18', num_classes=7))
    path = tmp_path_factory.mktemp('timm') / 'resnet18.pth'
    torch.save(net.state_dict(), path)
    return net.double(), path


def started_from(path, name='sb_resnet18', **options):
    """Warm start as timm's train.py --pretrained --pretrained-path does."""
    overlay = dict(file=str(path), num_classes=7)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).double().eval()


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_it_has_all_that_timms_resnet_has(depth, options):
    with torch.device('meta'):
        ours = timm.create_model(f'sb_resnet{depth}', **options)
        plain = timm.create_model(f'resnet{depth}', **options)
    public = {name for name in dir(plain) if not name.startswith('_')} - set(dir(nn.Module())) - OTHER_NAMES
    assert public - set(dir(ours)) == set()
    for name in public:
        value, own = getattr(plain, name), getattr(ours, name)
        if isinstance(value, (int, float, str)):
            assert own == value, name
        elif callable(value) and not isinstance(value, nn.Module) and name != 'init_weights':
            wanted = [(p.name, p.default) for p in signature(value).parameters.values()]
            assert [(p.name, p.default) for p in signature(own).parameters.values()] == wanted, name
    infos = [[(info['num_chs'], info['reduction']) for info in net.feature_info] for net in (ours, plain)]
    assert infos[0] == infos[1]
    assert ours.get_classifier(name_only=True) == plain.get_classifier(name_only=True)
    assert repr(ours.get_classifier()) == repr(plain.get_classifier())
    assert repr(ours.global_pool) == repr(plain.global_pool)
    x = torch.empty(2, options.get('in_chans', 3), 96, 64, device='meta')
    assert ours(x).shape == plain(x).shape
    assert ours.forward_features(x).shape == plain.forward_features(x).shape


def test_its_config_is_that_of_timms_resnet(depth):
    name = f'sb_resnet{depth}'
    ours, plain = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg('resnet18.tv_in1k')
    images = ('input_size', 'pool_size', 'crop_pct', 'interpolation', 'mean', 'std')
    for key in (*images, 'first_conv', 'classifier', 'num_classes'):
        assert getattr(ours, key) == getattr(plain, key), key
    assert ours.architecture == name
    assert not ours.has_weights
    assert name in timm.list_models()
    assert name in timm.list_models(name_matches_cfg=True)
    assert timm.list_pretrained('sb_resnet*') == []
    with torch.device('meta'):
        built = timm.create_model(name)
    assert built.default_cfg is built.pretrained_cfg
    assert built.pretrained_cfg == ours.to_dict()
    assert {built.pretrained_cfg[key] + '.weight' for key in ('first_conv', 'classifier')} <= set(built.state_dict())
    assert timm.data.resolve_data_config(model=built)['input_size'] == (3, 224, 224)


@torch.no_grad()
@pytest.mark.parametrize('options', [
    dict(num_classes=7),
    dict(num_classes=7, in_chans=1),
    dict(num_classes=7, global_pool='max'),
    dict(num_classes=7, output_stride=16),
    dict(num_classes=7, output_stride=8),
    dict(num_classes=0),
], ids=str)  # fmt: skip
def test_starts_as_timms_network_in_every_method(theirs, options):
    ours, plain = started_from(theirs[1], **options), started_from(theirs[1], 'resnet18', **options)
    x = image(options.get('in_chans', 3))
    for run in (
        lambda net: net(x),
        lambda net: net.forward_features(x),
        lambda net: net.forward_head(net.forward_features(x), pre_logits=True),
        lambda net: net.forward_intermediates(x),
        lambda net: net.forward_intermediates(x, indices=2),
        lambda net: net.forward_intermediates(x, indices=[-2, 0], stop_early=True),
        lambda net: net.forward_intermediates(x, indices=(1, 3), intermediates_only=True),
    ):
        torch.testing.assert_close(run(ours), run(plain))


@torch.no_grad()
def test_a_deep_stem_starts_as_timms_network(tmp_path):
    plain = scramble_norms(timm.create_model('resnet18d', num_classes=7))
    torch.save(plain.state_dict(), tmp_path / 'resnet18d.pth')
    options = dict(num_classes=7, in_chans=1, deep_stem=True, avg_down=True)
    ours = started_from(tmp_path / 'resnet18d.pth', **options)
    expected = started_from(tmp_path / 'resnet18d.pth', 'resnet18d', num_classes=7, in_chans=1)
    torch.testing.assert_close(ours(image(1)), expected(image(1)))
    for feature_cls in ('list', 'hook', 'getter'):
        features = started_from(tmp_path / 'resnet18d.pth', **options, features_only=True, feature_cls=feature_cls)
        found = features(image(1))
        torch.testing.assert_close(found, expected.forward_intermediates(image(1), intermediates_only=True))


@torch.no_grad()
@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter'])
def test_features_only(net, depth, feature_cls):
    expected = net.forward_intermediates(image(), indices=(1, 3), intermediates_only=True)
    options = dict(features_only=True, feature_cls=feature_cls, out_indices=(1, 3), num_classes=7)
    features = timm.create_model(f'sb_resnet{depth}', **options).double().eval()
    body = features.body if feature_cls == 'hook' else features.model if feature_cls == 'getter' else features
    body.load_state_dict({key: value for key, value in net.state_dict().items() if key in body.state_dict()})
    found = features(image())
    found = list(found.values()) if isinstance(found, dict) else found
    assert all(map(torch.equal, found, expected))
    assert features.feature_info.channels() == [feature.shape[1] for feature in expected]
    assert [64 // feature.shape[2] for feature in expected] == features.feature_info.reduction()


@torch.no_grad()
def test_stages_behind_the_last_feature_are_pruned(net):
    last = len(net.feature_info) - 1
    features = net.forward_intermediates(image(), intermediates_only=True)
    kept = copy.deepcopy(net)
    assert kept.prune_intermediate_layers([last], prune_head=False) == [last]
    assert torch.equal(kept(image()), net(image()))
    for index in range(last + 1):
        pruned = copy.deepcopy(net)
        assert pruned.prune_intermediate_layers([index - last - 1]) == [index]
        assert torch.equal(pruned.forward_features(image()), features[index])
        assert torch.equal(pruned.forward_intermediates(image(), [index], intermediates_only=True)[0], features[index])
        assert pruned.num_features == pruned.head_hidden_size == features[index].shape[1]
        pruned.reset_classifier(5, 'avg')
        torch.testing.assert_close(pruned(image()), pruned.fc(features[index].mean((2, 3))))


def test_pruning_leaves_no_idle_weights(depth):
    pruned = timm.create_model(f'sb_resnet{depth}')
    taken = pruned.prune_intermediate_layers((0, 2))
    sum(f.sum() for f in pruned.forward_intermediates(image(dtype=torch.float32), taken)[1]).backward()
    assert [name for name, p in pruned.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_a_new_head(net):
    net = copy.deepcopy(net)
    pooled = net.forward_head(net.forward_features(image()), pre_logits=True)
    torch.testing.assert_close(net.fc(pooled), net(image()))
    net.reset_classifier(0)
    assert net.num_classes == 0
    assert torch.equal(net(image()), pooled)
    net.reset_classifier(5, 'max')
    torch.testing.assert_close(net(image()), net.fc(net.forward_features(image()).amax((2, 3))))
    net.reset_classifier(3)  # keeps the pooling
    torch.testing.assert_close(net(image()), net.fc(net.forward_features(image()).amax((2, 3))))
    net.reset_classifier(3, 'catavgmax')
    assert net(image()).shape == (2, 3)
    assert net.head_hidden_size == 2 * net.num_features
    net.reset_classifier(0, '')
    assert torch.equal(net(image()), net.forward_features(image()))


def test_a_new_head_is_where_the_network_is():
    net = timm.create_model('sb_resnet18').eval().to('meta', torch.float64)
    net.reset_classifier(2)
    assert net.fc.weight.is_meta
    assert net.fc.weight.dtype == torch.float64
    assert not any(module.training for module in net.modules())


def test_weights_are_made_where_and_as_asked():
    net = timm.create_model('sb_resnet18', device='meta', dtype=torch.bfloat16)
    assert {(value.device.type, value.dtype) for value in net.parameters()} == {('meta', torch.bfloat16)}
    assert all(value.is_meta for value in net.buffers())


def test_dropout_before_the_head(net):
    net = copy.deepcopy(net)
    net.drop_rate = 0.5
    net.fc.train()
    features = net.eval().forward_features(image())
    net.training = True
    dropped = net.forward_head(features, pre_logits=True)
    share = (dropped == 0).double().mean()
    assert 0.4 < share < 0.6
    pooled = features.mean((2, 3))
    torch.testing.assert_close(dropped[dropped != 0], 2 * pooled[dropped != 0])


@pytest.mark.parametrize('options', [dict(), dict(features_only=True), dict(features_only=True, feature_cls='getter')])
def test_checkpointing_changes_neither_gradients_nor_statistics(options):
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        net = scramble_bias(timm.create_model('sb_resnet18', **options).double().train())
        (net.model if 'feature_cls' in options else net).set_grad_checkpointing(enable)
        outs = net(image())
        sum(out.pow(2).mean() for out in (outs if isinstance(outs, list) else [outs])).backward()
        results.append([p.grad for p in net.parameters() if p.grad is not None])
        results[-1] += [b for name, b in net.named_buffers() if options.get('feature_cls') or not options]
    torch.testing.assert_close(results[0], results[1])


def test_learning_rates_decay_with_the_depth(depth):
    """Every parameter that timm's ResNet has too is in the same group; those of the bias are with their block."""
    with torch.device('meta'):
        ours, plain = (timm.create_model(f'{prefix}resnet{depth}') for prefix in ('sb_', ''))
    for coarse in (False, True):
        groups = group_parameters(ours, ours.group_matcher(coarse), reverse=True)
        wanted = group_parameters(plain, plain.group_matcher(coarse), reverse=True)
        assert wanted.items() <= groups.items()
        for name in groups.keys() - wanted.keys():
            assert groups[name] == wanted['.'.join(name.split('.')[:2]) + '.conv1.weight'], name
    optimizer = create_optimizer_v2(ours, opt='adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    scales = {id(p): group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    assert len(scales) == len(list(ours.parameters()))
    assert scales[id(ours.fc.weight)] == 1.0
    assert scales[id(ours.conv1.weight)] == min(scales.values())


def averaged(net, x):
    ema = ModelEmaV3(net, decay=0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.01
    ema.update(net)
    return ema.module, x


def frozen(net, x):
    freeze(net, [name for name, _ in net.named_children()][:-1])
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    head = net.get_classifier(name_only=True) if hasattr(net, 'fc') else 'head'
    assert names
    assert all(name.startswith(head.split('.')[0]) for name in names)
    before = copy.deepcopy(dict(net.named_buffers()))
    net.train()(x).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    unfreeze(net)
    return net.eval(), x


@pytest.mark.parametrize('name', ['sb_resnet18', 'resnet18', 'regnety_002', 'convnext_atto'])
@pytest.mark.parametrize('change', [averaged, frozen, lambda net, x: (copy.deepcopy(net), x)])
def test_tools_of_timm_keep_the_bias(name, change):
    """After averaging, freezing and copying, the bias is still there and has the effect that it has in the network."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5)
    net = net if name.startswith('sb_') else mmsb.add_spatial_bias(net)
    net = scramble_bias(scramble_norms(net)).double()
    x = image()
    changed, x = change(copy.deepcopy(net), x)
    assert {key for key in net.state_dict() if any(part in key for part in BIAS_PARTS)} <= set(changed.state_dict())
    if change is not averaged:
        torch.testing.assert_close(changed(x), net(x))
    with torch.no_grad():
        before = changed(x)
        for block in [module for module in changed.modules() if hasattr(module, 'bias_conv')]:
            block.bias_conv.weight.zero_()
        assert not torch.equal(changed(x), before)


@pytest.mark.parametrize('name', ['resnet18', 'regnety_002', 'convnext_atto', 'efficientnet_lite0'])
def test_methods_of_timms_networks_with_a_bias(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5)
    net = scramble_bias(mmsb.add_spatial_bias(net)).double().eval()
    with torch.no_grad():
        features, found = net.forward_intermediates(image())
        torch.testing.assert_close(features, net.forward_features(image()))
        torch.testing.assert_close(net.forward_head(features), net(image()))
        assert len(found) == len(net.feature_info)
        pruned = copy.deepcopy(net)
        taken = pruned.prune_intermediate_layers([2])
        assert torch.equal(pruned.forward_intermediates(image(), taken, intermediates_only=True)[0], found[2])
        net.reset_classifier(3)
        assert net(image()).shape == (2, 3)
    groups = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    bias = [name for name in groups if any(f'.{part}.' in name for part in BIAS_PARTS)]
    head = groups[next(name for name, value in net.named_parameters() if value is net.get_classifier().weight)]
    assert bias
    assert all(groups[name] < head for name in bias)
    net.train().set_grad_checkpointing()
    net(image()).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_it_is_pickled_whole(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(image()), net(image()))
    assert again.pretrained_cfg == net.pretrained_cfg


@torch.no_grad()
@pytest.mark.parametrize(('depth', 'source'), [(50, 'local-dir'), (18, 'hf-hub')])
def test_timms_own_folder_and_hub(depth, source, tmp_path, monkeypatch):
    options = dict(spatial_bias=dict(num_maps=2), num_classes=7, in_chans=1, global_pool='max')
    net = scramble_bias(timm.create_model(f'sb_resnet{depth}', **options)).eval()
    save_for_hf(net, str(tmp_path), model_args=options, safe_serialization=True)
    if source == 'hf-hub':

        def download(repo_id, filename, **_):
            assert repo_id == 'me/net'
            return shutil.copy(tmp_path / filename, tmp_path / f'downloaded-{filename}')

        monkeypatch.setattr(timm.models._hub, 'hf_hub_download', download)
    where = tmp_path if source == 'local-dir' else 'me/net'
    again = timm.create_model(f'{source}:{where}', pretrained=True).eval()
    x = image(1, dtype=torch.float32)
    assert torch.equal(again(x), net(x))
    other = timm.create_model(f'{source}:{where}', pretrained=True, num_classes=3, in_chans=3).eval()
    assert other(image(3, dtype=torch.float32)).shape == (2, 3)
    features = timm.create_model(f'{source}:{where}', pretrained=True, features_only=True).eval()
    assert torch.equal(features(x)[-1], net.forward_features(x))


@torch.no_grad()
def test_loads_checkpoints_of_openmmlab(theirs, tmp_path):
    state = {f'head.{key}' if key.startswith('fc.') else f'backbone.{key}': value.float()
             for key, value in theirs[0].state_dict().items()}  # fmt: skip
    torch.save(dict(meta=dict(), state_dict=state), tmp_path / 'epoch_1.pth')
    torch.testing.assert_close(started_from(tmp_path / 'epoch_1.pth', num_classes=7)(image()), theirs[0](image()))


@pytest.mark.parametrize('options', [dict(), dict(features_only=True, feature_cls='getter', out_indices=(1,))])
def test_freezing_spares_a_bias_that_the_weights_lack(theirs, options):
    net = started_from(theirs[1], num_classes=7, frozen_stages=2, **options).train()
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen
    assert not [name for name in frozen if any(part in name.split('.') for part in BIAS_PARTS)]


@torch.no_grad()
def test_loads_its_own_weights_whole_and_no_half_bias(net, depth, tmp_path):
    state = {key: value.float() for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / 'whole.pth')
    again = started_from(tmp_path / 'whole.pth', f'sb_resnet{depth}', num_classes=7)
    torch.testing.assert_close(again(image()), net(image()))
    torch.save({key: v for key, v in state.items() if 'layer2.0.bias_conv' not in key}, tmp_path / 'half.pth')
    with pytest.raises(RuntimeError, match=r'layer2\.0\.bias_conv\.weight'):
        started_from(tmp_path / 'half.pth', f'sb_resnet{depth}', num_classes=7)


def test_weights_made_on_the_meta_device_are_initialised_later():
    with torch.device('meta'):
        net = timm.create_model('sb_resnet18')
    net.to_empty(device='cpu').init_weights()
    assert not net.layer1[0].bn2.weight.any()
    assert net.layer1[0].bn1.weight.eq(1).all()


@pytest.mark.parametrize(('options', 'named'), [
    (dict(pretrained=True), ['sb_resnet18', 'checkpoint_path']),
    (dict(drop_blok_rate=0.1), ['drop_blok_rate', 'drop_rate', 'global_pool']),
    (dict(output_stride=4), ['output_stride', '4', '[32, 16, 8]']),
    (dict(output_stride=16, strides=(1, 2, 2, 1)), ['output_stride=16', 'strides']),
    (dict(num_classes=-1), ['num_classes', '-1']),
], ids=str)  # fmt: skip
def test_mistakes_are_named_in_one_line(options, named):
    with pytest.raises(ValueError) as error:
        timm.create_model('sb_resnet18', **options)
    assert all(word in str(error.value) for word in named), error.value
    assert '\n' not in str(error.value)


def test_a_second_bias_is_refused():
    with torch.device('meta'), pytest.raises(ValueError, match='has spatial bias already'):
        mmsb.add_spatial_bias(timm.create_model('sb_resnet18'))


def test_an_unknown_argument_is_a_type_error_as_timms():
    with pytest.raises(TypeError, match='not_an_argument'):
        timm.create_model('sb_resnet18', not_an_argument=1)


def test_a_wrong_tag_is_refused():
    with pytest.raises(RuntimeError, match='no_such_tag'):
        timm.create_model('sb_resnet18.no_such_tag')
