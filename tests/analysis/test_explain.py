"""The page of explain: its numbers are the network's, it is one file, and bad input is one line."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmsb.analysis import bias_maps, explain, trained
from mmsb.analysis.bias_maps import BlockMaps
from mmsb.analysis.trained import Answer, Picture
from mmsb.checkpoints.load import load_checkpoint
from mmsb.configs import build_model, load_trained
from mmsb.datasets.test_set import class_names
from mmsb.models import SBResNetCifar, SpatialBias

PICTURE = Picture('x.png', np.zeros((8, 12, 3), np.uint8), torch.zeros(1, 3, 8, 12), [])


def data_of(page: str) -> dict:
    """Read the data of a page, as a browser does."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def decode(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind).astype(np.float64)


def random_block(name: str, side: int = 10, maps: int = 3) -> BlockMaps:
    random = torch.Generator().manual_seed(0)
    shapes = [(maps + 2, side, side), (maps, side, side), (maps, 2 * side, 2 * side), (side**2, side**2, 3), (side**2,)]
    return BlockMaps(name, *(torch.randn(shape, generator=random) for shape in shapes))


@torch.no_grad()
def seen(backbone: torch.nn.Module, part: str, image: torch.Tensor) -> torch.Tensor:
    """Return the output of a module in a forward pass."""
    outputs = []
    hook = backbone.get_submodule(part).register_forward_hook(lambda *args: outputs.append(args[2]))
    backbone(image)
    hook.remove()
    return outputs[0]


def test_contributions_by_a_loop_sum_up_to_what_the_network_computes():
    torch.manual_seed(0)
    side, taps = 4, 2
    backbone = SBResNetCifar(depth=11, spatial_bias=dict(pool_size=side, kernel_size=taps, num_maps=3)).eval()
    image = torch.randn(1, 3, 16, 24)
    blocks = bias_maps.record(backbone, image)
    assert [block.name for block in blocks] == ['layer1.0', 'layer2.0']
    assert [block.stage for block in blocks] == ['layer1', 'layer2']
    block, bias = blocks[1], backbone.layer2[0].spatial_bias
    reduced = seen(backbone, 'layer2.0.spatial_bias.reduce', image)[0]  # (4, 16, 24): stage 2 reads stage 1's size
    mixed = seen(backbone, 'layer2.0.spatial_bias.mix', image)[0]  # (16, 3)
    for index in range(3):
        contributions = block.contributions(index)
        for to in range(side**2):
            total = float(bias.mix.bias.detach()[to])
            for start in range(side**2):
                row, column = divmod(start, side)
                window = reduced[:, row * 4 : row * 4 + 4, column * 6 : column * 6 + 6]
                activations = window.mean((1, 2))
                wanted = sum(bias.mix.weight.detach()[to, start, tap] * activations[index + tap] for tap in range(taps))
                assert float(contributions[to, start]) == pytest.approx(float(wanted), abs=1e-6)
                total += float(wanted)
            assert total == pytest.approx(float(mixed[to, index]), abs=1e-5)
            assert float(block.maps[index].flatten()[to]) == pytest.approx(float(mixed[to, index]), abs=1e-6)
    assert torch.equal(block.upsampled, seen(backbone, 'layer2.0.spatial_bias', image)[0])


@pytest.mark.parametrize(('limit', 'rounded'), [(explain.MAX_BYTES, False), (140_000, True)])
def test_the_page_holds_the_weights_that_it_multiplies(limit, rounded, monkeypatch):
    monkeypatch.setattr(explain, 'MAX_BYTES', limit)
    block = random_block('layer1.0')
    page = explain.make_page([block], PICTURE, Answer('network'), 'title')
    assert len(page) < limit
    (stored,) = data_of(page)['blocks']
    step = stored['step']
    assert bool(step) == rounded
    weight = decode(stored['weight'], '<i2' if step else '<f4').reshape(100, 100, 3) * (step or 1)
    pooled, bias = decode(stored['pooled'], '<f4').reshape(5, 100), decode(stored['bias'], '<f4')
    assert np.abs(weight - block.weight.numpy()).max() <= step / 2 * (1 + 1e-6)
    for index in range(3):
        contributions = np.einsum('pqj,jq->pq', weight, pooled[index : index + 3])
        wanted = block.contributions(index).numpy()
        assert np.abs(contributions - wanted).max() <= (1e-3 if step else 1e-12) * np.abs(wanted).max()
    assert np.array_equal(bias, block.bias.double().numpy())


def test_every_shipped_depth_fits_into_a_page():
    blocks = [random_block(f'layer{i}.{j}') for i, depth in enumerate((3, 8, 36), 1) for j in range(depth)]
    picture = Picture('x.png', np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8), None, [])
    assert len(explain.make_page(blocks, picture, Answer('network'), 'SB-ResNet-152')) < 5_000_000
    with pytest.raises(ValueError, match=r'the page of 94 blocks would have .* MB, more than 5 MB: name fewer blocks'):
        explain.make_page(blocks * 2, picture, Answer('network'), '')


def test_the_page_needs_no_network_and_runs_nothing_of_its_data():
    name = '</script><img src=x onerror=alert(1)>.png'
    page = explain.make_page([random_block('layer1.0', 3)], Picture(name, PICTURE.pixels, None, []), Answer(''), name)
    assert page.isascii()
    assert not re.findall(r'https?:|src="(?!data)|@import|url\(', page)
    assert page.count('</script>') == 2
    assert data_of(page)['image']['name'] == 'script><img src=x onerror=alert(1)>.png', 'a name without folders'
    assert data_of(page)['subtitle'] == name


def test_blocks_are_chosen_by_their_names():
    blocks = [random_block(name, 2) for name in ('layer1.0', 'layer1.1', 'layer2.0')]
    assert explain.choose_blocks(blocks) == blocks
    assert explain.choose_blocks(blocks, ['layer2', 'layer1.1']) == blocks[1:]
    valid = 'valid: layer1, layer1.0, layer1.1, layer2, layer2.0'
    with pytest.raises(ValueError, match=f"no block with spatial bias is named 'layer4'; {valid}"):
        explain.choose_blocks(blocks, ['layer4'])


def test_blocks_without_mix_are_refused():
    backbone = SBResNetCifar(depth=11, spatial_bias=dict(mix=False)).eval()
    with pytest.raises(ValueError, match='no block mixes positions'):
        explain.choose_blocks(bias_maps.record(backbone, torch.randn(1, 3, 16, 16)))


def test_the_picture_is_what_the_network_sees(digits):
    cfg = Config.fromfile(digits.config)
    model = load_trained(cfg, str(digits.checkpoint))
    picture = trained.read_picture(cfg, model, digits.image)
    pixels = np.asarray(Image.open(digits.image))
    assert np.array_equal(picture.pixels, pixels), 'RGB, although OpenCV loads BGR'
    normalised = (pixels[..., ::-1].astype(np.float64) - 60) / 90
    assert np.abs(picture.inputs[0].permute(1, 2, 0).numpy() - normalised).max() < 1e-5
    for to_rgb, first in ((True, 0), (False, 1)):  # the second as CIFAR, whose dataset holds RGB arrays
        cfg.model.data_preprocessor.to_rgb = to_rgb
        cfg.test_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline[first:]
        again = trained.read_picture(cfg, load_trained(cfg, str(digits.checkpoint)), digits.image)
        assert np.array_equal(again.pixels, pixels)
        assert np.abs(again.inputs[0].permute(1, 2, 0).numpy() - (pixels - 60.0) / 90).max() < 1e-5


def test_a_grey_image_has_one_channel(digits):
    cfg = Config.fromfile(digits.config)
    cfg.model.backbone.in_channels = 1
    cfg.model.data_preprocessor.update(mean=[60.0], std=[90.0])
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    picture = trained.read_picture(cfg, build_model(cfg), digits.image)
    grey = np.asarray(Image.open(digits.image).convert('L')).astype(np.float64)
    assert np.abs(picture.inputs[0, 0].numpy() * 90 + 60 - grey).max() <= 1.01, 'they round differently'
    assert picture.pixels.shape == (*grey.shape, 3)


def test_the_answer_of_a_classifier(digits):
    cfg = Config.fromfile(digits.config)
    model = load_trained(cfg, str(digits.checkpoint))
    picture = trained.read_picture(cfg, model, digits.image)
    answer = trained.answer_of(model, picture, class_names(cfg, load_checkpoint(digits.checkpoint)))
    scores = model(picture.inputs, picture.samples, mode='predict')[0].pred_score
    best = scores.argsort(descending=True)[:5]
    assert [name for name, _ in answer.rows] == [f'digit {int(label)}' for label in best]
    assert [score for _, score in answer.rows] == pytest.approx(scores[best].tolist(), rel=1e-5)


@pytest.mark.parametrize(
    'name', ['fpn_sb-resnet20_b8-200i_digits-scenes', 'faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes']
)
def test_segmenters_and_detectors_have_an_answer_and_maps(name, digits, monkeypatch):
    cfg = Config.fromfile(digits.config.with_name(f'{name}.py'))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    picture = trained.read_picture(cfg, model, digits.image)
    monkeypatch.setattr(trained, 'MIN_SCORE', 0.0)
    answer = trained.answer_of(model, picture, class_names(cfg))
    assert answer.rows
    assert {label for label, _ in answer.rows} <= set(cfg.test_dataloader.dataset.metainfo.classes)
    if answer.kind == 'segmenter':
        assert sum(share for _, share in answer.rows) == pytest.approx(1)
    else:
        assert len(answer.boxes) == len(answer.rows) == 5
    blocks = bias_maps.record(trained.backbone_of(model), picture.inputs)
    count = sum(isinstance(module, SpatialBias) for module in model.modules())
    assert len(explain.choose_blocks(blocks)) == count > 3
    explain.make_page(blocks, picture, answer, name)


BAD_INPUT = {
    'image that does not exist': (dict(image='nothing.png'), "image 'nothing.png' cannot be read"),
    'image that is none': (dict(image='text.png'), "image 'text.png' is not an image"),
    'truncated image': (dict(image='half.png'), "image 'half.png'"),
    'plain network': (
        dict(checkpoint='plain.pth', options=['model.backbone.spatial_bias=None']),
        'this SBResNetCifar has no spatial bias, and so no maps to show',
    ),
    'block that does not exist': (
        dict(flags=['--blocks', 'layer3']),
        "named 'layer3'; valid: layer1, layer1.0, layer2",
    ),
    'checkpoint of another network': (dict(options=['model.backbone.depth=20']), "sb.pth' does not fit"),
    'checkpoint that does not exist': (dict(checkpoint='no.pth'), "checkpoint 'no.pth' does not exist"),
    'page of another suffix': (dict(out='page.pdf'), '--out must end in .html'),
    'folder that does not exist': (dict(out='no/page.html'), 'the folder of --out no/page.html does not exist'),
}


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_one_line_and_writes_nothing(name, digits, tmp_path, run_tool):
    change, said = BAD_INPUT[name]
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'half.png').write_bytes(digits.image.read_bytes()[:1000])
    (tmp_path / 'plain.pth').symlink_to(digits.plain)
    before = sorted(tmp_path.iterdir())
    options = ['--cfg-options', *change['options']] if 'options' in change else []
    done = run_tool('analysis/explain.py', digits.config, change.get('checkpoint', digits.checkpoint),
                    change.get('image', digits.image), '--out', change.get('out', 'page.html'),
                    *change.get('flags', []), *options, cwd=tmp_path)  # fmt: skip
    assert done.returncode != 0
    assert said in done.stderr.strip().splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_the_tool_writes_the_page(digits, tmp_path, run_tool):
    done = run_tool('analysis/explain.py', digits.config, digits.checkpoint, digits.image, '--out', 'page.html',
                    '--blocks', 'layer2', cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r'page.html: 0\.0\d MB, with layer2.0', done.stdout.splitlines()[-1])
    data = data_of((tmp_path / 'page.html').read_text())
    assert [block['name'] for block in data['blocks']] == ['layer2.0']
    assert data['answer']['kind'] == 'classifier'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['page.html']
