"""Exported files compute what the networks compute, at any size, also in the place of a network in its own test."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from mmengine.structures import PixelData
from torch import nn

from mmsb import export as module
from mmsb import exported
from mmsb.configs import build_model, read_config
from mmsb.export import Exportable, export
from mmsb.exported import OnnxFile, ProgramFile, run_in_onnxruntime
from mmsb.models.deploy import switch_to_deploy

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / 'configs/demo/sb-resnet11_b64-10e_digits.py'
CUE = ROOT / 'configs/demo/sb-resnet20_b16-250i_digits-cue.py'
SCENES = ROOT / 'configs/demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'
HERE = all(importlib.util.find_spec(name) for name in module.PACKAGES) and hasattr(torch.compiler, 'is_exporting')
pytestmark = pytest.mark.skipif(not HERE, reason='needs requirements/export.txt and PyTorch 2.6')


def network(config: Path, **backbone) -> nn.Module:
    """Build the network of a config, with statistics as after a training."""
    cfg = read_config(str(config))
    cfg.model.backbone.update(backbone)
    torch.manual_seed(0)
    model = build_model(cfg)
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]:
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(value, 0.4, 1.6)
    return model.eval()


@pytest.fixture(autouse=True)
def _small_images(monkeypatch):
    monkeypatch.setattr(module, 'CHECKED', ((2, 33, 32), (3, 41, 57)))


def pixels(*shape) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(*shape) * 255


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> tuple[nn.Module, Path]:
    """A classifier with four biased blocks as it was before the export, and its file, from pixels to scores."""
    model = network(DIGITS, depth=20)
    path = tmp_path_factory.mktemp('exported') / 'digits.onnx'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'CHECKED', ((2, 33, 32), (3, 41, 57)))
        export(copy.deepcopy(model), path, input='raw', output='scores')
    return model, path


@torch.no_grad()
@pytest.mark.parametrize('shape', [(1, 3, 32, 32), (5, 3, 23, 90), (2, 3, 130, 61)])
def test_a_classifier_at_any_size(classifier, shape):
    model, path = classifier
    mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
    expected = model.head(model.extract_feat((pixels(*shape) - mean) / std)).softmax(1)
    torch.testing.assert_close(OnnxFile(path)(pixels(*shape)), {'scores': expected}, rtol=1e-4, atol=1e-6)


def test_the_file_says_what_it_takes_and_gives(classifier):
    _, path = classifier
    said = OnnxFile(path).metadata
    assert (said['kind'], said['output']) == ('classifier', 'scores')
    assert said['input'] == 'raw: pixels from 0 to 255'
    assert json.loads(said['mean']) == [60, 60, 60]
    assert str(ROOT).encode() not in path.read_bytes(), 'a path of this machine'


def test_matrices_are_made_once_for_each_size_of_map(classifier):
    import onnx

    graph = onnx.load(classifier[1]).graph
    ranges = [node for node in graph.node if node.op_type == 'Range']
    assert len(ranges) == 2 * 2, 'the height and width of two sizes of map, for four blocks'
    assert [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim] == ['batch', '', 'height', 'width']


def test_each_addition_is_behind_a_convolution(classifier):
    """So that onnxruntime fuses it; the maps are not concatenated to the features."""
    import onnx

    graph = onnx.load(classifier[1]).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    kinds = [{makers.get(name) for name in node.input} for node in graph.node if node.op_type == 'Add']
    sums = [kind for kind in kinds if kind & {'Conv', 'Relu'}]
    assert len(sums) == 6 + 4, 'the shortcuts of six blocks, the maps of four'
    assert all('Conv' in kind for kind in sums)
    assert not any(makers.get(name) == 'Relu' for node in graph.node if node.op_type == 'Concat' for name in node.input)


@torch.no_grad()
def test_a_classifier_in_the_test_of_its_library(classifier):
    model, path = classifier
    from mmpretrain.structures import DataSample

    data = dict(inputs=list(pixels(4, 3, 32, 32)), data_samples=[DataSample() for _ in range(4)])
    expected = model.test_step(copy.deepcopy(data))
    other = network(DIGITS)  # of other weights, which must not matter
    run_in_onnxruntime(other, path)
    for one, theirs in zip(other.test_step(data), expected, strict=True):
        torch.testing.assert_close(one.pred_score, theirs.pred_score, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_segmenter_in_the_test_of_its_library(tmp_path):
    model = network(CUE)
    data = dict(inputs=[pixels(3, 40, 56)], data_samples=[_segmented((40, 56))])
    expected = model.test_step(copy.deepcopy(data))[0].seg_logits.data
    export(copy.deepcopy(model), tmp_path / 'cue.onnx')
    other = network(CUE, depth=11)
    run_in_onnxruntime(other, tmp_path / 'cue.onnx')
    found = other.test_step(data)[0].seg_logits.data
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def _segmented(shape: tuple[int, int]):
    from mmseg.structures import SegDataSample

    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape)
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.zeros(1, *shape)))


@torch.no_grad()
def test_a_detector_up_to_its_dense_head(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, 'CHECKED', ((2, 66, 64), (3, 41, 97))
    )  # below 33 pixels the deepest map has a side of 1
    model = network(SCENES, base_channels=4)
    del model.neck
    model.rpn_head = Dense()
    export(copy.deepcopy(model), tmp_path / 'scenes.pt2')
    found = ProgramFile(tmp_path / 'scenes.pt2')(pixels(1, 3, 70, 45))
    features = model.backbone(pixels(1, 3, 70, 45))
    assert list(found) == [*(f'feature_{i}' for i in range(4)), *(f'dense_{i}_{j}' for i in range(2) for j in range(4))]
    for i, feature in enumerate(features):
        for name, value in ((f'feature_{i}', feature), (f'dense_1_{i}', feature.sum(1))):
            assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max()


class Dense(nn.Module):
    """A head with two outputs a level."""

    def forward(self, features):
        return [x.relu() for x in features], [x.sum(1) for x in features]


CHANNELS = {  # config, channels, mean of each, input, options, format
    'grey classifier': (DIGITS, 1, [60.0], 'raw', {}, '.onnx'),
    'six channels': (DIGITS, 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 'normalised', {}, '.pt2'),
    'grey segmenter': (CUE, 1, [60.0], 'raw', {}, '.pt2'),
    'backbone of a detector': (SCENES, 4, None, 'normalised', dict(backbone=True), '.pt2'),
}


@torch.no_grad()
@pytest.mark.parametrize('case', CHANNELS)
def test_any_number_of_channels(case, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'CHECKED', ((2, 66, 64), (3, 41, 97)))  # as above
    config, channels, mean, input, options, suffix = CHANNELS[case]
    std = None if mean is None else [90.0] * channels
    cfg = read_config(str(config))
    cfg.model.backbone.update(in_channels=channels)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    preprocessor.update(mean=mean, std=std)
    for key in ('bgr_to_rgb', 'to_rgb'):
        preprocessor.pop(key, None)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    path = tmp_path / f'some{suffix}'
    images = pixels(2, channels, 40, 56)
    mean, std = (torch.tensor(value or [fallback]).view(-1, 1, 1) for value, fallback in ((mean, 0.0), (std, 1.0)))
    normalised = (images - mean) / std
    if options:
        wanted = model.backbone(normalised)[0]
    elif config == CUE:
        wanted = model.encode_decode(normalised, [dict(img_shape=(40, 56))])
    else:
        wanted = model.head(model.extract_feat(normalised))
    export(model, path, input=input, **options)
    run = OnnxFile(path) if suffix == '.onnx' else ProgramFile(path)
    found = next(iter(run(images if input == 'raw' else normalised).values()))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    if suffix == '.onnx':
        assert run.metadata['channels'] == 'grey'


def test_channels_of_a_network_that_rearranges_its_images_first():
    """YOLOX makes 12 channels of 3 before its first convolution."""
    from mmdet.models.backbones import CSPDarknet

    model = nn.Module()
    model.backbone = CSPDarknet(widen_factor=0.125)
    part = Exportable(model.eval(), backbone=True)
    assert part.channels == 12
    assert module._channels_taken(part, (1, 64, 64)) == 3


def test_exporting_the_backbone_alone():
    part = Exportable(switch_to_deploy(network(DIGITS)), backbone=True)
    names = list(part(pixels(1, 3, 32, 32)))
    assert (part.kind, names) == ('backbone', ['feature_0'])
    assert 'before any post-processing' in part.metadata()['output']


def test_scores_and_logits_are_inverse():
    model = nn.Module()
    for channels in (1, 5):
        logits = torch.randn(2, channels, 3, 3)
        scores = exported.to_scores(model, logits)
        back = exported.to_scores(model, exported.to_logits(model, scores))
        torch.testing.assert_close(back, scores)
        assert channels == 1 or torch.allclose(scores.sum(1), torch.ones(2, 3, 3))


class Bad(nn.Module):
    """A backbone whose graph depends on the values of the images."""

    def forward(self, x):
        return (x * 2,) if x.sum() > 0 else (x,)


BAT = dict(plugins=[dict(cfg=dict(type='mmsb.BAT'), position='after_block')])
REFUSED = {
    'suffix': (dict(), 'x.engine', {}, "must be one of ['.onnx', '.pt2'], got '.engine'"),
    'folder': (dict(), 'none/x.onnx', {}, "the folder of the output '.*none/x.onnx' does not exist"),
    'scores of features': (dict(), 'x.onnx', dict(backbone=True, output='scores'), 'this exports a backbone'),
    'BAT, free': (BAT, 'x.onnx', {}, 'with free height and width .* BAT of block_size 7 needs maps'),
    'BAT, no multiple of 7': (BAT, 'x.onnx', dict(size=(32, 32)), 'cannot be exported: BAT of block_size 7'),
    'graph of values': (dict(type=None), 'x.onnx', {}, 'cannot be exported: '),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_exported_is_one_line_and_leaves_no_file(case, tmp_path):
    backbone, out, options, said = REFUSED[case]
    model = network(DIGITS, **{key: value for key, value in backbone.items() if key != 'type'})
    if 'type' in backbone:
        model.backbone = Bad()
        options = dict(backbone=True)
    pattern = said.replace('[', r'\[').replace(']', r'\]')
    with pytest.raises((ValueError, FileNotFoundError), match=pattern) as raised:
        export(model, tmp_path / out, **options)
    assert '\n' not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'TOLERANCE', 0.0)
    (tmp_path / 'x.pt2').write_text('the old one')
    monkeypatch.setattr(module, 'ProgramFile', lambda path: lambda images: {'logits': torch.zeros(len(images), 10)})
    with pytest.raises(RuntimeError, match=r'logits of the exported network differs from PyTorch at \(2, 33, 32\)'):
        export(network(DIGITS), tmp_path / 'x.pt2')
    assert (tmp_path / 'x.pt2').read_text() == 'the old one'
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_packages_are_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if 'onnx' in name else find(name, *rest))
    with pytest.raises(ImportError, match='ONNX needs onnx, onnxscript, onnxruntime: run `pip install onnx onnxscript'):
        export(network(DIGITS), tmp_path / 'x.onnx')


@pytest.mark.parametrize(('config', 'said'), [(CUE, 'is a classifier, and the network of the config is a segmenter')])
def test_a_file_of_another_kind_is_refused(config, said, classifier, tmp_path):
    with pytest.raises(ValueError, match=said):
        run_in_onnxruntime(network(config), classifier[1])
    (tmp_path / 'no.onnx').write_text('no')
    with pytest.raises(ValueError, match='is not an ONNX file'):
        OnnxFile(tmp_path / 'no.onnx')


def test_the_tools(demo_data, tmp_path, run_tool):
    """tools/export.py writes a file that tools/test.py evaluates to the accuracy of the checkpoint."""
    torch.save(dict(state_dict=network(DIGITS).state_dict()), tmp_path / 'digits.pth')
    out = tmp_path / 'digits.onnx'
    done = run_tool(
        'export.py', DIGITS, tmp_path / 'digits.pth', out, '--input', 'raw', '--size', '32x32', cwd=demo_data
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(f'{out}: 2 x 32 x 32: differs from PyTorch by ')
    accuracies = []
    for file in (tmp_path / 'digits.pth', out):
        options = ('--work-dir', tmp_path / file.suffix, '--cfg-options', 'test_dataloader.num_workers=0',
                   'test_dataloader.persistent_workers=False')  # fmt: skip
        done = run_tool('test.py', DIGITS, file, *options, cwd=demo_data)
        assert done.returncode == 0, done.stderr
        log = next((tmp_path / file.suffix).glob('*/*.json'))
        accuracies.append(json.loads(log.read_text().splitlines()[-1])['accuracy/top1'])
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize(
    ('arguments', 'code', 'said'),
    [
        (('none.pth', 'x.onnx'), 1, "error: checkpoint 'none.pth' does not exist"),
        (('x.pth', 'x.txt'), 1, 'error: the suffix of the output must be one of'),
        (('x.pth', 'x.onnx'), 1, "error: checkpoint 'x.pth' does not fit"),
        (('x.pth', 'x.onnx', '--size', '224'), 2, 'must be pixels, height x width, such as 224x320'),
    ],
)
def test_bad_input_of_the_tool(arguments, code, said, tmp_path, run_tool):
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), tmp_path / 'x.pth')
    done = run_tool('export.py', DIGITS, *arguments, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']
