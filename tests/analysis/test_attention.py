"""Class-activation maps of grad-cam for our models, and what is said without it."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmsb.analysis import attention, bias_maps, pictures, trained
from mmsb.configs import build_model, load_trained
from mmsb.files import write_figure

needs_library = pytest.mark.skipif(
    importlib.util.find_spec('pytorch_grad_cam') is None, reason='grad-cam is not installed'
)
SEGMENTER = 'fpn_sb-resnet20_b8-200i_digits-scenes.py'
DETECTOR = 'faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'


@pytest.fixture
def classifier(digits):
    cfg = Config.fromfile(digits.config)
    model = load_trained(cfg, str(digits.checkpoint))
    return model, trained.read_picture(cfg, model, digits.image)


@needs_library
def test_grad_cam_of_a_classifier_by_hand(classifier):
    """Selvaraju et al., arXiv:1610.02391, equations 1 and 2: for the layer's own size, up to the scale of the map."""
    model, picture = classifier
    kept = []
    hook = model.backbone.layer1.register_forward_hook(lambda *args: kept.append(args[2]))
    score = model.head(model.extract_feat(picture.inputs.clone().requires_grad_(True)))[0, 7]
    hook.remove()
    weights = torch.autograd.grad(score, kept[0])[0].mean((2, 3), keepdim=True)
    wanted = (weights * kept[0]).sum(1)[0].relu().detach().numpy()
    found, method = attention.activation_map(model, picture, 'layer1', label=7)
    assert method == 'GradCAM'
    scaled = (wanted - wanted.min()) / (wanted.max() - wanted.min())
    assert np.abs(found - scaled).max() < 1e-3, 'the layer has the size of the image'
    other, _ = attention.activation_map(model, picture, 'layer1', label=3)
    assert np.abs(found - other).max() > 0.01, 'another class has another map'


@needs_library
@pytest.mark.parametrize('method', attention.METHODS)
def test_methods_also_where_everything_is_frozen(method, classifier):
    model, picture = classifier
    model.requires_grad_(False)
    found, _ = attention.activation_map(model, picture, 'layer2', method)
    assert found.shape == picture.pixels.shape[:2]
    assert 0 <= found.min() < found.max() <= 1


@needs_library
@pytest.mark.parametrize(('name', 'method'), [(SEGMENTER, 'GradCAM'), (DETECTOR, 'EigenCAM')])
def test_segmenters_and_detectors(name, method, digits, tmp_path):
    cfg = Config.fromfile(digits.config.with_name(name))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    picture = trained.read_picture(cfg, model, digits.image)
    found, used = attention.activation_map(model, picture, 'layer2')
    assert used == method
    assert found.shape == picture.pixels.shape[:2]
    blocks = bias_maps.record(model.backbone, picture.inputs)
    figure = pictures.draw_attention(picture.pixels, 'a', {'layer2': found, 'layer3.0': found}, blocks, used)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    last = 'layer2.1' if name == SEGMENTER else 'layer2.3'
    assert titles[:5] == ['a', f'layer2: {used}', *(f'{last}: map {i}' for i in (1, 2, 3))]
    write_figure(tmp_path / 'maps.png', figure)
    assert (tmp_path / 'maps.png').stat().st_size > 10_000


@needs_library
def test_a_segmenter_of_two_classes_with_one_output(digits):
    cfg = Config.fromfile(digits.config.with_name(SEGMENTER))
    cfg.model.decode_head.update(num_classes=2, out_channels=1)
    cfg.model.decode_head.loss_decode = dict(type='CrossEntropyLoss', use_sigmoid=True)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    picture = trained.read_picture(cfg, model, digits.image)
    logits = model.encode_decode(picture.inputs, [dict(img_shape=picture.inputs.shape[2:])])[0, 0].detach()
    low, high = logits.flatten().sort()[0][[200, 260]]
    boundary = (low + high) / 2
    model.decode_head.threshold = boundary.sigmoid().item()
    labels = model.predict(picture.inputs, picture.samples)[0].pred_sem_seg.data[0]
    share = labels.float().mean().item()
    assert 0 < share < 1
    assert dict(trained.answer_of(model, picture).rows) == pytest.approx({'class 0': 1 - share, 'class 1': share})
    scores = attention.Scores(model, 'segmenter')(picture.inputs)[0]
    shifted = logits - boundary
    wanted = [-shifted[labels == 0].sum().item(), shifted[labels == 1].sum().item()]
    assert scores.tolist() == pytest.approx(wanted, rel=1e-3)
    found = [attention.activation_map(model, picture, 'layer3', label=label)[0] for label in (0, 1)]
    assert np.abs(found[0] - found[1]).max() > 0


@needs_library
def test_what_does_not_exist(classifier):
    model, picture = classifier
    with pytest.raises(ValueError, match=r"layer must be a module of the backbone \(conv1, .*layer3.*\), got 'layer9'"):
        attention.activation_map(model, picture, 'layer9')


def test_classes_are_chosen_by_name_or_number(classifier, digits):
    model, _ = classifier
    names = [f'digit {i}' for i in range(10)]
    assert attention.choose_class(model, None, names) is None
    assert attention.choose_class(model, 'digit 3', names) == 3
    assert attention.choose_class(model, '3', ()) == 3
    for wrong in ('digit', '10', '-1'):
        with pytest.raises(ValueError, match=f"class must be 0 to 9 or one of digit 0, .*, got '{wrong}'"):
            attention.choose_class(model, wrong, names)
    detector = build_model(Config.fromfile(digits.config.with_name(DETECTOR)))
    with pytest.raises(ValueError, match='a class is for classifiers and segmenters, and this is a detector'):
        attention.choose_class(detector, '1', ())


def test_without_the_library_one_line_says_what_to_install(digits, tmp_path, run_tool, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"need grad-cam: run `pip install 'grad-cam<1.5'`"):
        attention.require_library()


BAD_INPUT = {
    'class': (['--class', 'cat'], 'class must be 0 to 9 or one of digit 0, '),
    'layer': (['--layers', 'layer9'], 'layer must be a module of the backbone'),
    'figure': (['--out', 'maps.html'], "the suffix of the figure must be one of ['.png', '.pdf', '.svg'], got '.html'"),
    'checkpoint': (['--cfg-options', 'model.head.num_classes=3'], 'does not fit'),
}


@needs_library
@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_one_line_and_writes_nothing(name, digits, tmp_path, run_tool):
    arguments, said = BAD_INPUT[name]
    done = run_tool('analysis/attention_map.py', digits.config, digits.checkpoint, digits.image, '--out', 'maps.png',
                    *arguments, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@needs_library
def test_the_tool_draws_networks_with_bias_and_without(digits, tmp_path, run_tool):
    options = dict(sb=[], plain=['--cfg-options', 'model.backbone.spatial_bias=None'])
    for name, more in options.items():
        checkpoint = digits.checkpoint if name == 'sb' else digits.plain
        done = run_tool('analysis/attention_map.py', digits.config, checkpoint, digits.image, '--out', f'{name}.png',
                        '--class', 'digit 4' if name == 'sb' else '4', *more, cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f'{name}.png: layer1, layer2, layer3'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['plain.png', 'sb.png']
