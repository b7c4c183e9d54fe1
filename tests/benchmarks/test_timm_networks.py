"""The table of timm's networks: its figures against the difference of two networks, and the page against the code."""

import csv
import re
from pathlib import Path

import pytest
import timm
import torch

import mmsb
from benchmarks.timm_networks import Row, as_dict, by_family, find_names, measure
from mmsb.analysis.complexity import count
from mmsb.analysis.report import markdown
from mmsb.models.any_network import BLOCKS

DOCS = Path(__file__).resolve().parents[2] / 'docs'
NAMES = ['resnet18', 'regnety_002', 'convnext_atto', 'mobilenetv3_small_050', 'test_byobnet']


def written():
    with (DOCS / 'tables/timm_networks.csv').open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('name', NAMES)
def test_figures_are_the_difference_of_two_networks(name):
    (row,) = measure([name])
    with torch.device('meta'):
        nets = timm.create_model(name), mmsb.add_spatial_bias(timm.create_model(name))
    blocks = sum(hasattr(module, 'bias_conv') for module in nets[1].modules())
    counts = [count(net, (3, row.side_px, row.side_px)) for net in nets]
    assert (row.params, row.ops) == (counts[0].params, counts[0].ops)
    assert (row.added_params, row.added_ops) == (counts[1].params - row.params, counts[1].ops - row.ops)
    assert sum(map(int, re.findall(r'\d+ ', row.blocks))) == blocks
    assert {key: str(value) for key, value in as_dict(row).items()} == next(r for r in written() if r['name'] == name)


def test_networks_without_such_blocks_are_left_out():
    assert list(measure(['vit_tiny_patch16_224', 'deit_tiny_patch16_224'])) == []


def test_names_are_timms_own():
    names = find_names()
    assert not [name for name in names if name.startswith('sb_')]
    assert find_names(['resnet18', 'convnext_at*']) == [
        'convnext_atto',
        'convnext_atto_ols',
        'convnext_atto_rms',
        'resnet18',
    ]
    with pytest.raises(ValueError, match=re.escape("'resnet19'")):
        find_names(['resnet18', 'resnet19'])


def test_a_family_has_the_ranges_of_its_networks():
    rows = [
        Row('a', 'x', '2 Basic, 1 Wide', 224, 1000, 2000, 10, 30),
        Row('b', 'x', '3 Basic', 224, 1000, 2000, 25, 10),
        Row('c', 'x', 'Basic', reason='none'),
        Row('d', 'w', '3 Basic', 224, 1000, 2000, 10, 30),
    ]
    assert by_family(rows) == [
        ['w', '1', '`Basic`', '1.0', '1.5'],
        ['x', '2', '`Basic`, `Wide`', '1.0 to 2.5', '0.5 to 1.5'],
    ]


def test_the_page_lists_the_types_of_blocks():
    page = (DOCS / 'any_network.md').read_text()
    rows = re.findall(r'^\| `(\w+\.\w+)` \| `([\w.]+)` \| `([\w.]+)` \|$', page, re.MULTILINE)
    assert [(f'timm.models.{kind}', (beside, reader)) for kind, beside, reader in rows] == list(BLOCKS.items())


def test_the_page_has_all_networks():
    works = [row for row in written() if not row['reason']]
    assert len(works) >= 280
    assert f'{len(works)} networks of timm' in (DOCS / 'any_network.md').read_text()
    numbers = {
        key: int(row[key]) for row in works[:1] for key in ('side_px', 'params', 'ops', 'added_params', 'added_ops')
    }
    assert all(numbers.values())
    rows = [Row(r['name'], r['family'], r['blocks'], *(int(r[key]) for key in numbers), r['reason']) for r in written()]
    table = (DOCS / 'tables/timm_networks.md').read_text().splitlines()
    assert table[2:] == markdown(table[0].strip('| ').split(' | '), by_family(rows)).splitlines()[2:]
