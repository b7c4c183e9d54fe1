"""A folder for timm gives the scores of the network that was trained, on images as timm prepares them."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.configs import build_model
from mmsb.publish_timm import publish_for_timm

ROOT = Path(__file__).resolve().parents[1]
EDGE = [dict(type='ResizeEdge', scale=36, edge='short'), dict(type='CenterCrop', crop_size=32)]
NORMALISED = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
RGB = dict(type='ClsDataPreprocessor', num_classes=3, to_rgb=True, **NORMALISED)


def config(backbone=None, steps=EDGE, preprocessor=RGB, load=True, **model) -> Config:
    pipeline = [*([dict(type='LoadImageFromFile')] if load else []), *steps, dict(type='PackInputs')]
    head = dict(type='LinearClsHead', num_classes=3, in_channels=512, loss=dict(type='CrossEntropyLoss'))
    parts = dict(neck=dict(type='GlobalAveragePooling'), head=head, data_preprocessor=preprocessor)
    backbone = dict(dict(type='mmsb.SBResNet', depth=18), **backbone or {})
    dataset = dict(type='CustomDataset', data_root='data', pipeline=pipeline)
    return Config(dict(
        default_scope='mmpretrain',
        model=dict(dict(type='ImageClassifier', backbone=backbone, **parts), **model),
        test_dataloader=dict(batch_size=2, dataset=dataset),
    ))  # fmt: skip


def trained(cfg: Config, path: Path) -> nn.Module:
    """Write the checkpoint of a training with this config; return its network."""
    torch.manual_seed(0)
    net = build_model(cfg)
    for norm in [m for m in net.modules() if isinstance(m, _BatchNorm)]:
        for value in [*norm.parameters(), norm.running_mean, norm.running_var]:
            nn.init.uniform_(value, 0.3, 1.2)
    meta = dict(epoch=3, cfg=cfg.pretty_text, dataset_meta=dict(classes=('cat', 'dog', 'owl')))
    torch.save(dict(meta=meta, state_dict=net.state_dict()), path)
    return net.eval()


def picture(path: Path, mode='RGB') -> Path:
    pixels = np.random.RandomState(0).randint(0, 256, (36, 36, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@torch.no_grad()
def scores_by_timm(folder: Path, path: Path, mode='RGB') -> torch.Tensor:
    net = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(model=net))
    return net(prepare(Image.open(path).convert(mode))[None]).softmax(1)[0]


@torch.no_grad()
def scores_by_mmpretrain(net: nn.Module, cfg: Config, results: dict) -> torch.Tensor:
    sample = Compose(cfg.test_dataloader.dataset.pipeline)(results)
    return net.test_step(default_collate([sample]))[0].pred_score


@pytest.mark.parametrize('cfg', [
    config(),
    config(dict(spatial_bias=dict(num_maps=2, pool='max'), frozen_stages=1, norm_eval=True, drop_path_rate=0.1)),
    config(dict(norm_cfg=dict(type='SyncBN', eps=1e-3, requires_grad=False), deep_stem=True, avg_down=True)),
    config(preprocessor=dict(RGB, to_rgb=False), steps=[dict(type='Resize', scale=(36, 36))]),
    config(dict(depth=50, style='caffe', strides=(1, 2, 2, 1)),
           head=dict(type='LinearClsHead', num_classes=3, in_channels=2048)),
    config(dict(spatial_bias=None), preprocessor=dict(type='ClsDataPreprocessor', num_classes=3)),
    config(dict(sb_stages=(False, True, True, True), init_cfg=dict(type='Pretrained', checkpoint='gone.pth'))),
], ids=range(7))  # fmt: skip
def test_timm_gives_the_scores_of_the_trained_network(cfg, tmp_path):
    stored = cfg.copy()
    build = cfg.copy()
    build.model.backbone.init_cfg = None
    net = trained(build, tmp_path / 'epoch_3.pth')
    content = torch.load(tmp_path / 'epoch_3.pth')
    content['meta']['cfg'] = stored.pretty_text
    torch.save(content, tmp_path / 'epoch_3.pth')
    assert publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'net') == ''
    assert {path.name for path in (tmp_path / 'net').iterdir()} == {'config.json', 'model.safetensors'}
    path = picture(tmp_path / 'image.png')
    expected = scores_by_mmpretrain(net, build, dict(img_path=str(path)))
    torch.testing.assert_close(scores_by_timm(tmp_path / 'net', path), expected, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / 'net/config.json').read_text())['label_names'] == ['cat', 'dog', 'owl']


def test_images_from_arrays_are_rgb(tmp_path):
    """A dataset of arrays, such as CIFAR, gives RGB, which a network without `to_rgb` gets as it is."""
    cfg = config(load=False, preprocessor=dict(RGB, to_rgb=False))
    net = trained(cfg, tmp_path / 'epoch_3.pth')
    publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'net')
    path = picture(tmp_path / 'image.png')
    expected = scores_by_mmpretrain(net, cfg, dict(img=np.array(Image.open(path))))
    torch.testing.assert_close(scores_by_timm(tmp_path / 'net', path), expected, rtol=1e-4, atol=1e-5)


def test_images_by_tifffile_are_rgb(tmp_path):
    pytest.importorskip('tifffile')
    cfg = config()
    cfg.test_dataloader.dataset.pipeline[0].imdecode_backend = 'tifffile'
    cfg.model.data_preprocessor.to_rgb = False
    net = trained(cfg, tmp_path / 'epoch_3.pth')
    publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'net')
    path = picture(tmp_path / 'image.tif')
    expected = scores_by_mmpretrain(net, cfg, dict(img_path=str(path)))
    torch.testing.assert_close(scores_by_timm(tmp_path / 'net', path), expected, rtol=1e-4, atol=1e-5)


def test_grey_images(tmp_path):
    grey = dict(type='ClsDataPreprocessor', num_classes=3, mean=[100.0], std=[50.0])
    cfg = config(dict(in_channels=1), preprocessor=grey)
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    net = trained(cfg, tmp_path / 'epoch_3.pth')
    publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'net')
    path = picture(tmp_path / 'image.png', 'L')
    expected = scores_by_mmpretrain(net, cfg, dict(img_path=str(path)))
    torch.testing.assert_close(scores_by_timm(tmp_path / 'net', path, 'L'), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('size', 'scale'), [(224, 256), (32, 36), (224, 235), (299, 320), (192, 219), (384, 384)])
def test_timm_resizes_to_the_same_scale(size, scale, tmp_path):
    steps = [dict(type='ResizeEdge', scale=scale, interpolation='bicubic'), dict(type='CenterCrop', crop_size=size)]
    trained(config(steps=steps), tmp_path / 'epoch_3.pth')
    publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'net')
    with torch.device('meta'):
        net = timm.create_model(f'local-dir:{tmp_path / "net"}')
    resize, crop = timm.data.create_transform(**timm.data.resolve_data_config(model=net)).transforms[:2]
    assert (resize.size, tuple(crop.size), resize.interpolation.value) == (scale, (size, size), 'bicubic')


@pytest.mark.parametrize('steps', [
    [dict(type='Pad', size=(48, 48)), *EDGE],
    [dict(type='Resize', scale=36, keep_ratio=True)],
    [dict(type='ResizeEdge', scale=36, interpolation='area'), EDGE[1]],
    [],
], ids=range(4))  # fmt: skip
def test_an_unknown_crop_is_a_warning_and_the_backbone_has_no_head(steps, tmp_path):
    net = trained(config(steps=steps), tmp_path / 'epoch_3.pth')
    assert 'input_size' in publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'net', backbone=True)
    again = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
    x = torch.randn(2, 3, 64, 48)
    assert again.num_classes == 0
    torch.testing.assert_close(again(x), net.backbone.eval()(x)[-1].mean((2, 3)))


def test_a_checkpoint_of_timms_train_py(tmp_path):
    kwargs = dict(spatial_bias=dict(num_maps=2, pool='max'))
    args = Namespace(model='sb_resnet18', model_kwargs=kwargs, gp='max', img_size=48, mean=(0.5, 0.4, 0.3), std=None)
    net = timm.create_model('sb_resnet18', num_classes=3, in_chans=3, global_pool='max', **kwargs).eval()
    content = dict(epoch=1, arch='sb_resnet18', args=args, state_dict=net.state_dict(), metric=50.0)
    torch.save(content, tmp_path / 'model_best.pth.tar')
    publish_for_timm(tmp_path / 'model_best.pth.tar', tmp_path / 'net')
    again = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(again(x), net(x))
    data = timm.data.resolve_data_config(model=again)
    assert (data['input_size'], data['mean'], data['crop_pct']) == ((3, 48, 48), [0.5, 0.4, 0.3], 0.875)
    torch.save(dict(content, arch='resnet18'), tmp_path / 'model_best.pth.tar')
    with pytest.raises(ValueError, match="sb_resnet152'], got 'resnet18'"):
        publish_for_timm(tmp_path / 'model_best.pth.tar', tmp_path / 'other')


def detector(cfg: Config) -> Config:
    cfg.model = dict(type='FasterRCNN', backbone=cfg.model.backbone, data_preprocessor=cfg.model.data_preprocessor)
    return cfg


@pytest.mark.parametrize(('cfg', 'named'), [
    (config(dict(type='mmsb.SBResNetCifar', depth=11)), ['SBResNetCifar', 'SBResNet', 'epoch_3.pth']),
    (config(neck=dict(type='GeneralizedMeanPooling')), ['neck', 'GeneralizedMeanPooling', 'GlobalAveragePooling']),
    (config(head=dict(type='StackedLinearClsHead')), ['head', 'StackedLinearClsHead', 'LinearClsHead']),
    (config(dict(out_indices=(2,))), ['out_indices', '[3]', '2']),
    (config(dict(depth=26)), ['depth', '26', '18']),
    ("model = dict(backbone=dict(type='mmsb.SBResNet', depth=int('18')))", ['plain data', 'epoch_3.pth']),
    (detector(config()), ['--backbone', 'neck']),
    (None, ['no config', 'checkpoint_path', 'save_for_hf']),
    (config(dict(depth=34)), ['epoch_3.pth', 'layer1.2.conv1.weight']),
])  # fmt: skip
def test_what_timm_has_not_is_one_line_and_nothing_is_written(cfg, named, tmp_path):
    trained(config(), tmp_path / 'epoch_3.pth')
    content = torch.load(tmp_path / 'epoch_3.pth')
    content['meta'] = {} if cfg is None else dict(cfg=getattr(cfg, 'pretty_text', cfg))
    torch.save(content, tmp_path / 'epoch_3.pth')
    with pytest.raises(ValueError) as error:
        publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'net')
    assert all(word in str(error.value) for word in named), error.value
    assert '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_3.pth']


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    trained(config(), tmp_path / 'epoch_3.pth')

    def full(*_, **__):
        raise OSError('no space left')

    monkeypatch.setattr('json.dump', full)
    with pytest.raises(OSError, match='no space'):
        publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'net')
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_3.pth']


def test_a_folder_that_is_in_use_is_kept(tmp_path):
    with pytest.raises(ValueError, match='exists already'):
        publish_for_timm(tmp_path / 'epoch_3.pth', Path(__file__).parent)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        publish_for_timm(tmp_path / 'epoch_3.pth', tmp_path / 'nowhere/net')


def test_the_tool_and_a_new_process(tmp_path, run_tool):
    net = trained(config(), tmp_path / 'epoch_3.pth')
    done = run_tool('publish.py', tmp_path / 'epoch_3.pth', '--timm', tmp_path / 'net', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code, folder = done.stdout.strip().splitlines()[-1].partition(': ')[::2][::-1]
    assert folder == str(tmp_path / 'net')
    run = 'import timm; ' + code.replace('timm.create', 'net = timm.create') + '; import torch; torch.manual_seed(0)'
    run += f'; torch.save(net.eval()(torch.randn(1, 3, 32, 32)), {str(tmp_path / "out.pt")!r})'
    done = subprocess.run([sys.executable, '-c', run], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    with torch.no_grad():
        expected = net.head(net.extract_feat(torch.randn(1, 3, 32, 32)))
    torch.testing.assert_close(torch.load(tmp_path / 'out.pt'), expected)


@pytest.mark.parametrize('outputs', [[], ['net.pth', '--timm', 'net']])
def test_the_tool_writes_one_thing(outputs, tmp_path, run_tool):
    done = run_tool('publish.py', tmp_path / 'epoch_3.pth', *outputs, cwd=tmp_path)
    assert done.returncode == 2
    assert '--timm DIR' in done.stderr
