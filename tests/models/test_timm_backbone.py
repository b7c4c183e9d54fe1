"""timm's networks as backbones: feature maps, warm start, freezing, a step of the shipped configs, mistakes."""

import numpy as np
import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData, PixelData
from torch import nn

from mmsb.analysis import zoo
from mmsb.configs import build_model
from mmsb.models import TimmBackbone

NETWORKS = ['resnet18', 'convnext_atto', 'regnetx_002', 'mobilenetv3_small_050']


def image():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def wake(net):
    """Give the last norms of blocks, which timm starts at zero, a weight: nothing before them learns in step 1."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.uniform_(module.weight, 0.3, 1.2)
    return net


def is_new(name):
    return any(part in name for part in ('spatial_bias', 'bias_norm', 'bias_conv'))


@pytest.fixture
def plain(request, tmp_path):
    torch.manual_seed(0)
    net = wake(timm.create_model(request.param)).eval()
    torch.save(net.state_dict(), tmp_path / 'plain.pth')
    return request.param, net, str(tmp_path / 'plain.pth')


@pytest.mark.parametrize('plain', NETWORKS, indirect=True)
def test_starts_as_timms_feature_maps(plain):
    name, net, path = plain
    ours = TimmBackbone(name, dict(num_maps=2), path).eval()
    ours.init_weights()
    theirs = timm.create_model(name, features_only=True)
    wanted = [i for i, stride in enumerate(theirs.feature_info.reduction()) if stride >= 4]
    assert list(ours.out_indices) == wanted
    assert ours.strides == [4, 8, 16, 32]
    with torch.no_grad():
        outs, expected = ours(image()), net.forward_intermediates(image(), intermediates_only=True)
    assert all(map(torch.equal, outs, [expected[i] for i in wanted]))
    assert [out.shape[1] for out in outs] == ours.channels
    assert [out.shape[2:] for out in outs] == [(64 // stride, 96 // stride) for stride in ours.strides]


@pytest.mark.parametrize('plain', NETWORKS, indirect=True)
def test_layers_behind_the_last_output_are_left_out(plain):
    ours = TimmBackbone(plain[0], dict(), plain[2], out_indices=(1, 2)).train()
    sum((out * torch.rand_like(out)).mean() for out in ours(image())).backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('plain', NETWORKS, indirect=True)
@pytest.mark.parametrize('trained', [False, True])
def test_frozen_stages_freeze_what_was_trained(plain, trained, tmp_path):
    name, _, path = plain
    if trained:
        net = TimmBackbone(name, dict(), path)
        path = str(tmp_path / 'trained.pth')
        torch.save({f'backbone.{key}': value for key, value in net.state_dict().items()}, path)
    ours = TimmBackbone(name, dict(), path, frozen_stages=1).train()
    whole = TimmBackbone(name, None, out_indices=(1,))  # all that leads to this feature map
    needed = set(whole.state_dict())
    frozen = {key for key, p in ours.named_parameters() if not p.requires_grad}
    assert {key for key in frozen if not is_new(key)} == {key for key, _ in whole.named_parameters()} & needed
    blocks = {key.rpartition('.bias_conv')[0] for key in ours.state_dict() if key.endswith('bias_conv.weight')}
    inside = {block for block in blocks if any(key.startswith(f'{block}.') for key in frozen if not is_new(key))}
    assert inside
    assert {f'{block}.bias_conv.weight' in frozen for block in inside} == {trained}
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    sum((out * torch.rand_like(out)).mean() for out in ours(image())).backward()
    optimizer.step()
    changed = {key for key, value in ours.state_dict().items() if not torch.equal(value, before[key])}
    assert not changed & (needed if not trained else needed | {f'{b}.bias_conv.weight' for b in inside})
    assert trained or {f'{block}.bias_conv.weight' for block in inside} <= changed


def test_norm_eval_keeps_the_statistics():
    ours = TimmBackbone('resnet18', norm_eval=True).train()
    assert not any(m.training for m in ours.modules() if isinstance(m, nn.BatchNorm2d))
    assert ours.training


def step(name, model_name=None, **options):
    """Train a shipped config a step, with another backbone if named; return the names of what changed and the model."""
    cfg = zoo.load(name)
    if model_name:
        cfg.model.backbone.model_name = model_name
        with torch.device('meta'):
            cfg.model.neck.in_channels = TimmBackbone(model_name).channels
    cfg.merge_from_dict(options)
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    wake(model.backbone)
    random = np.random.default_rng(0)
    inputs = [torch.from_numpy(random.integers(0, 255, (3, 64, 96), np.uint8)) for _ in range(2)]
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0), img_path='none')
    samples = [sample(cfg.default_scope, meta) for _ in inputs]
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model.train().train_step(dict(inputs=inputs, data_samples=samples), wrapper)
    assert all(torch.isfinite(value) for value in losses.values())
    return {key for key, value in model.backbone.state_dict().items() if not torch.equal(value, before[key])}


def sample(library, meta):
    if library == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return DataSample().set_gt_label(3)
    if library == 'mmseg':
        from mmseg.structures import SegDataSample

        return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, 64, 96))))
    from mmdet.structures import DetDataSample

    found = DetDataSample(metainfo=meta)
    found.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8, 60, 50]]), labels=torch.tensor([0]))
    return found


DETECTOR = 'coco/faster-rcnn_sb-regnetx-400mf_fpn_1x_coco.py'
SEGMENTER = 'ade20k/fpn_sb-resnet18_40k_ade20k-512x512.py'


@pytest.mark.parametrize('model_name', [None, 'convnext_atto'])
def test_a_detector_trains_a_step(model_name):
    changed = step(DETECTOR, model_name)
    assert any('bias_conv' in key for key in changed)


@pytest.mark.parametrize('model_name', [None, 'mobilenetv3_small_050'])
def test_a_segmenter_trains_a_step(model_name):
    changed = step(SEGMENTER, model_name, **{'model.data_preprocessor.size': (64, 96)})
    assert any('bias_conv' in key for key in changed)


def test_a_classifier_trains_a_step():
    augment = {'model.train_cfg': None, 'optim_wrapper.optimizer.lr': 1e-3}
    changed = step('imagenet/sb-convnext-tiny_b4096-300e_in1k.py', **augment)
    assert any('bias_conv' in key for key in changed)


@pytest.mark.parametrize('plain', ['resnet18'], indirect=True)
def test_an_init_cfg_of_the_whole_model_comes_before_the_checkpoint(plain):
    cfg = zoo.load('imagenet/sb-convnext-tiny_b4096-300e_in1k.py')
    cfg.model.backbone.update(model_name='resnet18', pretrained=plain[2], out_indices=(4,))
    cfg.model.head.in_channels = 512
    cfg.model.train_cfg = None
    model = build_model(cfg)
    model.init_weights()  # base config: a truncated normal for every convolution
    with torch.no_grad():
        expected = plain[1].forward_features(image())
        assert torch.equal(model.backbone.eval()(image())[-1], expected)


@pytest.mark.parametrize('plain', ['resnet18'], indirect=True)
@pytest.mark.parametrize(('options', 'named'), [
    (dict(model_name='resnet51'), ['model_name', 'resnet51', 'did you mean']),
    (dict(out_indices=(7,)), ['out_indices', '7', '4']),
    (dict(frozen_stages=9), ['frozen_stages', '9']),
    (dict(spatial_bias=dict(num_map=3)), ['num_map', 'num_maps']),
    (dict(spatial_bias=dict(stages=(3,))), ['stages', '3', '16']),
    (dict(model_name='resnet50'), ['plain.pth', 'has shape']),
    (dict(depth=50), ['depth', 'model_name']),
])  # fmt: skip
def test_mistakes_are_named_in_one_line(plain, options, named):
    with pytest.raises(ValueError) as error:
        TimmBackbone(**{'model_name': 'resnet18', 'pretrained': plain[2], **options})
    assert all(word in str(error.value) for word in named), error.value
    assert '\n' not in str(error.value)
