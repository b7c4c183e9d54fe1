"""The yardstick of the mirror: its changed scenes, its records, and that the page has the tables of the records."""

import json
import logging

import numpy as np
import pytest
import torch

from benchmarks import mirror
from benchmarks.mirror_networks import CONTEXTS, NETWORKS, PLACES, QUESTIONS, Segmenter, build
from mmsb.datasets import digits


@pytest.fixture(autouse=True)
def _globals():
    threads = torch.get_num_threads()
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.fixture
def scene():
    return digits.mirror_scene(np.random.default_rng(3), digits.load('val')[0])


def colours(scene) -> list[tuple[int, int, int]]:
    """Rows, columns and classes of the digits, in cells."""
    mask = scene[1]
    cells = [(row, column) for row in range(8) for column in range(8)]
    found = [
        (*cell, {*np.unique(mask[8 * cell[0] : 8 * cell[0] + 8, 8 * cell[1] : 8 * cell[1] + 8])}) for cell in cells
    ]
    return [(row, column, *labels - {digits.IGNORE}) for row, column, labels in found if labels - {digits.IGNORE}]


def test_changed_scenes_keep_each_digit_with_its_class(scene):
    there = colours(scene)
    assert len(there) == 8
    down = colours(mirror.moved(scene, 8, 0))
    assert down == [(row + 1, column, label) for row, column, label in there if row < 7]
    right = colours(mirror.moved(scene, 0, 8))
    assert right == [(row, column + 1, label) for row, column, label in there if column < 7]
    assert colours(mirror.flipped(scene, 1)) == sorted((row, 7 - column, label) for row, column, label in there)
    image, mask = mirror.CHANGES['widened to 64 x 96'](scene)
    assert image.shape == (64, 96, 3)
    np.testing.assert_array_equal(mask[:, 64:], scene[1][:, 32:])
    np.testing.assert_array_equal(image[:, :32], scene[0][:, :32])
    image, mask = mirror.CHANGES['scaled to 96 x 96'](scene)
    assert (image.shape, mask.shape) == ((96, 96, 3), (96, 96))
    assert {*np.unique(mask)} == {*np.unique(scene[1])}
    for seed in range(50):  # in all directions
        image, mask = mirror.augmented(scene, np.random.default_rng(seed))
        assert (image.shape, mask.shape, image.dtype) == ((64, 64, 3), (64, 64), np.uint8)


def test_places_are_two_more_channels():
    logging.disable(logging.INFO)
    for context in CONTEXTS | QUESTIONS:
        params = sum(parameter.numel() for parameter in Segmenter(context).parameters())
        if context.endswith(PLACES):
            plain = sum(parameter.numel() for parameter in Segmenter(context.removesuffix(PLACES)).parameters())
            assert params - plain == 2 * 9 * 16  # of the stem
    assert Segmenter('SB')(torch.rand(1, 3, 48, 64)).shape == (1, 4, 48, 64)


@pytest.mark.parametrize('name', NETWORKS)
def test_other_networks_take_the_scenes(name):
    logging.disable(logging.INFO)
    network = build(name)
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 4, 64, 64)
    assert sum(p.numel() for p in network.parameters()) >= sum(
        p.numel() for p in build(f'{name.split(",")[0]}, plain').parameters()
    )


def test_a_record_is_made_once_and_tables_are_of_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirror, 'STEPS', 2)
    monkeypatch.setattr(mirror, 'LONG', 4)
    monkeypatch.setattr(mirror, 'TEST_EVERY', 1)
    monkeypatch.setattr(mirror, 'TEST_SCENES', 16)
    monkeypatch.setattr(mirror, 'RATES', (1e-3,))
    monkeypatch.setattr(
        'sys.argv', ['mirror', '--contexts', 'SB, pool only', '--seeds', '0', '1', '--results', str(tmp_path)]
    )
    mirror.main()
    paths = sorted(tmp_path.iterdir())
    assert [path.stem for path in paths] == [f'sb-pool-only_2-steps_rate0.001_seed{seed}' for seed in (0, 1)]
    record = json.loads(paths[0].read_text())
    assert [step for step, *_ in record['curve']] == [1, 2]
    assert record['changes'].keys() == mirror.CHANGES.keys()
    assert 'SB, pool only | 126,844' in capsys.readouterr().out
    before = paths[0].stat().st_mtime_ns
    mirror.main()
    assert paths[0].stat().st_mtime_ns == before


def test_the_page_has_the_tables_of_the_records():
    page = (mirror.ROOT / 'docs/when.md').read_text()
    found = mirror.Records(mirror.RESULTS).all()
    for table in (
        *(mirror.table(found, list(names)) for names in (CONTEXTS, QUESTIONS, NETWORKS)),
        mirror.table_of_changes(found),
    ):
        assert table in page


def test_a_context_that_is_not_known_is_named(monkeypatch):
    monkeypatch.setattr('sys.argv', ['mirror', '--contexts', 'XY'])
    with pytest.raises(ValueError, match="got 'XY'"):
        mirror.main()
