"""The tables of speed in the README and the docs say what the records in `benchmarks/results` say."""

import json
from pathlib import Path

import pytest
from markdown_tables import cells

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks/results'
NAMES = {  # in the README: in the records
    'ResNet-50': 'resnet50',
    '**with spatial bias**': 'sb-resnet50',
    'with GC': 'gc-resnet50',
    'with SE': 'se-resnet50',
    'with SK': 'sk-resnet50',
    'with BAT': 'bat-resnet50',
    'with NL': 'nl-resnet50',
}


def samples(name: str) -> dict[tuple, dict]:
    """Read a record of the throughput tool; the key is network, phase, batch size and mode."""
    results = json.loads((RESULTS / name).read_text())['results']
    return {(one['network'], one['phase'], one['batch_size'], one['mode']): one for one in results}


@pytest.fixture(scope='module')
def records() -> dict[str, dict]:
    return {name: samples(f'{name}.json') for name in ('speed', 'speed-bf16', 'memory')}


def rows(page: str, heading: str) -> list[list[str]]:
    """Read the first table below a heading, without its header."""
    lines = (ROOT / page).read_text().partition(f'\n## {heading}\n')[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith('|'))
    table = lines[start : next(i for i in range(start, len(lines)) if not lines[i].startswith('|'))]
    return [cells(line) for line in table[2:]]


def ratio(record: dict) -> str:
    return f'{record["time_ratio"]:.2f}'


def spread(record: dict) -> str:
    low, high = record['time_ratio_quartiles']
    return f'{ratio(record)} ({low:.2f} to {high:.2f})'


def test_the_readme_has_the_measured_ratios(records):
    table = rows('README.md', 'What it costs')
    assert [row[0] for row in table] == list(NAMES)
    for name, _, _, *shown in table:
        network = NAMES[name]
        times = [
            ratio(records[file][network, phase, 8, 'eager'])
            for phase in ('inference', 'training')
            for file in ('speed', 'speed-bf16')
        ]
        memory = records['memory'][network, 'training', 8, 'eager']['peak_mib']
        assert shown == [*times, f'{memory:,.0f} MiB'], name


def test_the_page_has_the_measured_ratios(records):
    table = rows('docs/speed.md', 'All networks, 224 x 224')
    shown_of = {'resnet50' if name == 'ResNet-50' else f'{name}-resnet50': shown for name, *shown in table}
    assert {*shown_of} == {key[0] for key in records['speed']}
    for network, shown in shown_of.items():
        times = [
            spread(records[file][network, phase, batch, mode])
            for file, phase, batch, mode in (
                ('speed', 'inference', 1, 'eager'),
                ('speed', 'inference', 8, 'eager'),
                ('speed', 'inference', 8, 'deploy'),
                ('speed-bf16', 'inference', 8, 'eager'),
                ('speed-bf16', 'inference', 8, 'deploy'),
                ('speed', 'training', 8, 'eager'),
                ('speed-bf16', 'training', 8, 'eager'),
            )
        ]
        memory = records['memory'][network, 'training', 8, 'eager']['peak_mib']
        assert shown[1:] == [*times, f'{memory:,.0f}'], network
