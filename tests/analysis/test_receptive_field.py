"""Outside its theoretical field a plain network has no gradient at all; with spatial bias there is one everywhere."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from mmsb.analysis.receptive_field import Field, Unit, connections, field_of
from mmsb.models import SBResNet, SBResNetCifar, TimmBackbone

SIDE_PX = 64
# SBResNetCifar(depth=11), stem and one block a stage: each 3x3 adds 2 pixels of the grid that it reads, and the strides
# of stages 2 and 3 lie in their 3x3. 1 + 2 + 2 + 2 after stage 2, and + 2 * 2 after stage 3.
SIDES = {1: 5, 2: 7, 3: 11}


def network(kind: type, seed: int = 0, **options) -> nn.Module:
    """Build a backbone with random weights and statistics, not initialised: every branch has an effect."""
    torch.manual_seed(seed)
    backbone = kind(**options)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return backbone.eval()


def images(count: int = 3, side_px: int = SIDE_PX) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, side_px, side_px, generator=random) for _ in range(count)]


@pytest.mark.parametrize('stage', SIDES)
def test_the_gradient_stays_inside_the_theoretical_field_only_without_bias(stage):
    plain = field_of(network(SBResNetCifar, depth=11, spatial_bias=None), Unit(stage), images())
    top, left, bottom, right = plain.theoretical
    assert (bottom - top, right - left) == (SIDES[stage], SIDES[stage]), 'by hand'
    outside = np.ones_like(plain.gradient, dtype=bool)
    outside[top:bottom, left:right] = False
    assert (plain.gradient[outside] == 0).all()
    assert (plain.gradient[~outside] > 0).any()
    assert plain.outside(plain.theoretical) == 0

    biased = field_of(network(SBResNetCifar, depth=11), Unit(stage), images())
    assert (biased.gradient[outside] > 0).mean() > 0.99
    assert biased.outside(plain.theoretical) > 0
    assert biased.theoretical == (0, 0, SIDE_PX, SIDE_PX)


def test_the_field_of_a_resnet_of_imagenet():
    """7x7 of stride 2, 3x3 pool of stride 2, two 3x3 of stride 4 in each of the two basic blocks."""
    side = 7 + 2 * 2 + 4 * 2 * 4
    backbone = network(SBResNet, depth=18, spatial_bias=None, base_channels=4)
    field = field_of(backbone, Unit(1), images(2, 96))
    assert field.theoretical[2] - field.theoretical[0] == side
    assert field.outside(field.theoretical) == 0
    # unit 12 of 24 reads rows 12 * 4 - side // 2 and following
    assert field.theoretical[0] == 48 - side // 2
    assert field.centre == (48.5, 48.5)


def test_group_norms_couple_all_positions():
    backbone = network(SBResNetCifar, depth=11, spatial_bias=None, norm_cfg=dict(type='GN', num_groups=4))
    field = field_of(backbone, Unit(1), images(1))
    assert field.theoretical == (0, 0, SIDE_PX, SIDE_PX)
    assert field.gradient.min() > 0


def test_the_field_of_a_network_of_timm():
    """ConvNeXt: patches of 4 px, and two 7x7 of stride 4 in the first stage."""
    backbone = network(TimmBackbone, model_name='convnext_atto', out_indices=(0,)).eval()
    field = field_of(backbone, Unit(1), images(1, 96))
    side = 4 + 2 * 6 * 4
    assert field.theoretical[2] - field.theoretical[0] == side
    assert field.outside(field.theoretical) == 0


def test_every_pixel_of_the_theoretical_field_is_connected():
    backbone = network(SBResNetCifar, depth=11, spatial_bias=None)
    image = torch.ones(1, 3, SIDE_PX, SIDE_PX, dtype=torch.float64, requires_grad=True)
    connections(backbone)(image)[-1][0, :, 8, 8].sum().backward()
    assert int((image.grad[0, 0] > 0).sum()) == SIDES[3] ** 2


def test_batch_norm_in_training_couples_all_positions():
    """Why the networks must be in evaluation."""
    backbone = network(SBResNetCifar, depth=11, spatial_bias=None)
    field = field_of(backbone, Unit(1), images(1))
    assert field_of(backbone.train(), Unit(1), images(1)).outside(field.theoretical) > 0


def test_a_unit_in_the_corner_and_one_channel():
    backbone = network(SBResNetCifar, depth=11, spatial_bias=None)
    image = torch.randn(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(3))
    field = field_of(backbone, Unit(2, row=0, column=31, channel=5), [image])
    assert field.theoretical == (0, SIDE_PX - 2 - 4 + 1, 4, SIDE_PX)
    image.requires_grad_(True)
    features = []
    backbone.layer2.register_forward_hook(lambda *args: features.append(args[2]))
    backbone(image)
    features[0][0, 5, 0, 31].backward()
    assert np.array_equal(field.gradient, image.grad[0].abs().sum(0).double().numpy())


def test_measures_by_hand():
    gradient = np.zeros((9, 9))
    gradient[4, 4], gradient[3, 4], gradient[0, 0] = 6, 3, 1
    field = Field(gradient, (3, 3, 6, 6), (4.5, 4.5))
    assert field.outside((3, 3, 6, 6)) == pytest.approx(0.1)
    assert field.sides_px() == {0.5: 1, 0.9: 3, 0.99: 9}


@pytest.mark.parametrize(
    ('unit', 'said'),
    [
        (Unit(4), r'stage must be one of \[1, 2, 3\], got 4'),
        (Unit(1, row=64), r'row of the unit must be one of \[0, .*63\], got 64'),
        (Unit(1, channel=-1), 'channel of the unit must be one of'),
    ],
)
def test_a_unit_that_does_not_exist(unit, said):
    with pytest.raises(ValueError, match=said):
        field_of(network(SBResNetCifar, depth=11), unit, images(1))


def test_the_tool_compares_with_the_same_network_without_its_bias(digits, tmp_path, run_tool):
    done = run_tool('analysis/receptive_field.py', digits.config, digits.checkpoint, digits.image, digits.image,
                    '--out', 'field.png', '--json', 'field.json', cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'field.png').read_bytes().startswith(b'\x89PNG')
    data = json.loads((tmp_path / 'field.json').read_text())
    assert data['unit']['stage'] == 2, 'the last with spatial bias'
    assert data['image_px'] == [28, 40]
    plain, biased = data['networks'].values()
    assert list(data['networks']) == ['sb-resnet11 without its bias', 'sb-resnet11']
    assert plain['share_outside'] == 0 < biased['share_outside']
    top, left, bottom, right = data['theoretical_px']
    assert (bottom - top, right - left) == (SIDES[2], SIDES[2])


BAD_INPUT = {
    'stage': (['--stage', '4'], 'stage must be one of [1, 2, 3], got 4'),
    'stage 0': (['--stage', '0'], 'stage must be one of [1, 2, 3], got 0'),
    'unit': (['--row', '99'], 'row of the unit must be one of'),
    'image': (['nothing.png'], "image 'nothing.png' cannot be read"),
    'size': (['small.png'], "image 'small.png' is 8 x 8 px, and"),
    'figure': (['--out', 'field.txt'], "the suffix of the figure must be one of ['.png', '.pdf', '.svg'], got '.txt'"),
    'plain checkpoint': (['--plain', 'CONFIG', 'no.pth'], "checkpoint 'no.pth' does not exist"),
    'plain network of another shape': (['--plain', 'CUE', 'CHECKPOINT'], 'does not fit'),
}


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_one_line_and_writes_nothing(name, digits, tmp_path, run_tool):
    from PIL import Image

    arguments, said = BAD_INPUT[name]
    Image.new('RGB', (8, 8)).save(tmp_path / 'small.png')
    before = sorted(tmp_path.iterdir())
    places = dict(CONFIG=digits.config, CHECKPOINT=digits.checkpoint)
    places['CUE'] = digits.config.with_name('resnet20_b16-250i_digits-cue.py')
    done = run_tool('analysis/receptive_field.py', digits.config, digits.checkpoint, digits.image,
                    *([] if arguments[0].startswith('--') else arguments), '--out', 'field.png', '--json', 'field.json',
                    *(places.get(a, a) for a in arguments if arguments[0].startswith('--')), cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr.strip().splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before
