"""The benchmark of the forms: it times each row of the table, a refusal is a row, and ratios are those of one round."""

import functools
import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import forms
from mmsb.models import forms as table_of_forms
from mmsb.models.forms import FORMS, TABLE

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device('cpu')
RESULTS = ROOT / 'benchmarks/results/forms-cpu.json'


def block(kind: str = 'fp32, nchw') -> forms.Block:
    return forms.Block('ResNet-38, stage 1', (2, 16, 24), kind, CPU)


@pytest.fixture(autouse=True)
def _table_unchanged():
    before = {computation: dict(row) for computation, row in TABLE.items()}
    yield
    assert before == TABLE


def test_every_row_is_measured_and_written(tmp_path, capsys):
    forms.main(['--quick', '--modes', 'eager', '--rounds', '2', '--device', 'cpu', '--json', str(tmp_path / 'a.json')])
    data = json.loads((tmp_path / 'a.json').read_text())
    assert data['complete']
    assert data['machine']['load_average'], 'how busy the machine was'
    found = {(row['kind'], row['computation'], row['form'], row['phase']): row for row in data['rows']}
    pairs = [(computation, form) for computation, names in FORMS.items() for form in names]
    assert set(found) == {(k, *pair, phase) for k, pair, phase in itertools.product(forms.KINDS, pairs, forms.PHASES)}
    for (_, computation, form, _), row in found.items():
        assert row['chosen'] == (TABLE[computation]['cpu'] == form)
        assert len(row['samples_ms']) == 2
        assert row['ratio'] == [1, 1, 1] if row['chosen'] else row['ratio'][0] <= row['ratio'][1] <= row['ratio'][2]
    assert (tmp_path / 'a.md').read_text() == forms.table(data)
    assert forms.summary(data) in capsys.readouterr().out


def test_ratios_are_taken_within_a_round():
    assert forms.summarise([2.0, 9.0, 3.0], [1.0, 3.0, 3.0], None) == dict(
        ms=[2500.0, 3000.0, 6000.0], ratio=[1.5, 2.0, 2.5], samples_ms=[2000.0, 9000.0, 3000.0], reason=None
    )


@pytest.mark.parametrize(('part', 'operation'), [('make', 'adaptive_avg_pool2d'), ('read', 'pad')])
def test_each_form_has_a_graph_of_its_own(part, operation, monkeypatch):
    graphs = []

    def compile_(graph, _inputs):
        graphs.append({getattr(node.target, '__name__', str(node.target)) for node in graph.graph.nodes})
        return graph.forward

    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=compile_))
    rows = forms.measure(block('bf16, channels_last'), part, 'compiled', CPU, rounds=2)
    assert [row['reason'] for row in rows] == [None] * len(rows)
    assert len(graphs) == 1 + sum(len(FORMS[name]) - 1 for name in forms.PARTS[part]), 'none takes that of another'
    assert sum(operation in names for names in graphs) == 1, 'only the form that calls it'


def test_what_the_compiler_refuses_is_a_row(monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError('no compiler | here\nand a second line')

    monkeypatch.setattr(torch, 'compile', refuse)
    rows = forms.measure(block(), 'read', 'compiled', CPU, rounds=1)
    assert {row['reason'] for row in rows} == {'no compiler | here and a second line'}
    assert {row['ms'] for row in rows} == {None}
    machine = dict(device='cpu', cpu='x', threads=1, cores=1, load_average=None, torch='2', date='2026')
    rows = [dict(mode='compiled', kind='k', size='s', **row) for row in rows]
    data = dict(rows=rows, complete=True, rounds=1, machine=machine)
    assert '| none: no compiler / here and a second line |' in forms.table(data)
    assert '| read        | padded | -' in forms.summary(data)


def test_a_form_that_fails_leaves_the_others(monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(torch.nn.functional, 'pad', fail)
    rows = forms.measure(block(), 'read', 'eager', CPU, rounds=1)
    assert {row['form'] for row in rows if row['reason']} == {'padded'}
    assert {row['reason'] for row in rows if row['reason']} == {'out of memory'}


@pytest.mark.parametrize(('arguments', 'said'), [
    (['--json', 'a.txt'], "--json must name a file .json, got 'a.txt'"),
    (['--json', 'a.json', '--rounds', '0'], '--rounds must be an integer of at least 1, got 0'),
    (['--json', 'a.json', '--device', 'tpu'], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
])  # fmt: skip
def test_mistakes_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        forms.parse_options(arguments)


def cells(text: str) -> list[str]:
    """Split a page of tables into lines, without what only aligns them."""
    return [re.sub(' +', ' ', re.sub('-{3,}', '---', line)).strip() for line in text.splitlines()]


def test_the_published_figures_are_those_of_the_samples_and_stand_beside_the_table():
    data = json.loads(RESULTS.read_text())
    assert cells(RESULTS.with_suffix('.md').read_text()) == cells(forms.table(data))
    source, page = Path(table_of_forms.__file__).read_text(), (ROOT / 'docs/speed.md').read_text()
    beside = re.findall(r'\d\.\d\d \(\d\.\d\d to \d\.\d\d\)', source)
    assert len(beside) == 12, 'eager and compiled, of each form that does not run'
    figures = forms.summary(data)
    for figure in beside:
        assert figure in figures
        assert figure in page
