"""The long-range yardstick: what the convolutions reach, who sees the patch, its measure, its records and errors."""

import json
import logging

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import long_range
from benchmarks.long_range_networks import (
    DISTANCE_PX,
    NETWORKS,
    SCENE_PX,
    Segmenter,
    reach,
    receptive_field,
    seen_by,
    windows,
)
from mmsb.datasets import digits


@pytest.fixture(autouse=True)
def _globals():
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def positive(name: str) -> Segmenter:
    """A plain network without a weight that hides a pixel: all are positive, and so is what they compute."""
    segmenter = Segmenter(name, 'plain').double().eval()
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter.abs_().add_(0.01)
    return segmenter


@pytest.mark.parametrize('name', NETWORKS)
def test_rows_that_a_pixel_sees_are_those_with_gradients(name):
    segmenter, layers = positive(name), windows(Segmenter(name, 'plain'))
    images = torch.rand(1, 3, SCENE_PX, SCENE_PX, dtype=torch.double, requires_grad=True)
    logits = segmenter(images)
    for pixel in (0, 3, 4, 63, SCENE_PX - DISTANCE_PX - 10, SCENE_PX - 1):
        (gradient,) = torch.autograd.grad(logits[0, :, pixel, 64].sum(), images, retain_graph=True)
        rows = np.flatnonzero(gradient[0].abs().sum((0, 2)))
        low, high = seen_by(pixel, layers)
        assert (max(low, 0), min(high, SCENE_PX - 1)) == (rows[0], rows[-1])
    assert reach(layers) < DISTANCE_PX


def test_receptive_field_of_three_convolutions():
    assert receptive_field([(3, 2, 1), (3, 1, 1), (5, 2, 2)]) == 3 + 2 * 2 + 4 * 2


def test_distance_is_that_of_the_nearest_pixels():
    rng, drawn = np.random.default_rng(0), digits.load('val')[0]
    nearest = SCENE_PX
    for _ in range(300):
        image, mask = digits.cue_scene(rng, drawn, SCENE_PX)
        assert image.shape == (SCENE_PX, SCENE_PX, 3)
        coloured = np.ptp(image.astype(int), axis=-1) > 85
        for axis in (0, 1):
            patch, ink = (np.flatnonzero(found.any(axis)) for found in (coloured, mask != digits.IGNORE))
            nearest = min(nearest, abs(patch[:, None] - ink).min())
    assert DISTANCE_PX <= nearest <= DISTANCE_PX + 3


@pytest.mark.parametrize('name', NETWORKS)
def test_all_but_plain_see_the_patch(name):
    for context in NETWORKS[name]:
        segmenter = Segmenter(name, context)
        with torch.no_grad():
            for parameter in segmenter.parameters():  # GC and spatial bias start at zero
                parameter.add_(0.02 * torch.randn_like(parameter))
        assert long_range.sees_patch(segmenter) == (context != 'plain'), context


class ByColour(nn.Module):
    """Knows the answer: gives each pixel the class of the most colourful one."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = (images * long_range.STD + long_range.MEAN).flatten(2)
        place = (pixels.amax(1) - pixels.amin(1)).argmax(1)
        colour = pixels[torch.arange(len(pixels)), :, place]
        distances = torch.cdist(colour, torch.tensor(list(digits.CUE_COLOURS.values())).float())
        return -distances[:, :, None, None].expand(-1, -1, *images.shape[-2:])


class OneClass(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(len(digits.CUE_COLOURS))[2, :, None, None].expand(len(images), -1, SCENE_PX, SCENE_PX)


def test_accuracy_is_chance_untrained_and_all_for_the_right_answer():
    assert long_range.accuracy(ByColour()) == 100
    assert long_range.accuracy(OneClass()) == long_range.CHANCE == 25
    assert abs(long_range.accuracy(Segmenter('RegNetX-200MF', 'plain')) - long_range.CHANCE) < 3


def test_records_are_complete_and_made_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(long_range, 'TEST_SCENES', 16)  # of all classes
    monkeypatch.setattr(long_range.time_steps, '__defaults__', (1,))
    figure = tmp_path / 'figure.png'
    arguments = ['--networks', 'RegNetX-200MF', '--seeds', '7', '--steps', '3']
    arguments += ['--results', str(tmp_path / 'records'), '--figure', str(figure)]
    long_range.main(arguments)
    first = capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in (tmp_path / 'records').glob('*_seed7.json')]
    assert {record['context'] for record in records} == set(NETWORKS['RegNetX-200MF'])
    for record in records:
        assert set(record) == {
            'network', 'context', 'seed', 'steps', 'batch', 'scene_px', 'distance_px', 'receptive_field_px', 'reach_px',
            'sees_patch', 'chance', 'accuracy', 'losses', 'seconds', 'params', 'macs', 'ops', 'machine',
        }  # fmt: skip
        assert record['machine']['command'].endswith('--networks RegNetX-200MF --seeds 7 --steps 3')
        assert {'torch', 'timm', 'mmsb', 'cpu', 'threads', 'date'} <= set(record['machine'])
        assert record['params'] == sum(p.numel() for p in Segmenter(record['network'], record['context']).parameters())
    assert figure.stat().st_size > 10_000
    figure.unlink()

    monkeypatch.setattr(long_range, 'run', None)  # whoever trains again fails
    monkeypatch.setattr(long_range, 'time_steps', None)
    long_range.main(arguments)
    assert first.endswith(capsys.readouterr().out)
    assert figure.exists()
    with pytest.raises(ValueError, match=r'has 3 steps, not 4: choose another --results or --steps$'):
        long_range.main([*arguments, '--steps', '4'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--networks', 'ResNet-50'], "--networks must be one of ['ResNet-20', 'MobileNetV3-small', "),
        (['--seeds', '-1'], '--seeds must be 0 or more, got -1'),
        (['--steps', '0'], '--steps must be an integer of at least 1, got 0'),
        (['--figure', 'nowhere/figure.png'], 'the folder of --figure nowhere/figure.png does not exist'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError)) as told:
        long_range.parse_options(arguments)
    assert str(told.value).startswith(message)
    assert '\n' not in str(told.value)
