"""The report of the trainings at a small budget."""

import json
import math
import statistics

import pytest
from PIL import Image

from benchmarks.cifar100 import report

T_2 = 4.302653  # two-sided 95 %, two degrees of freedom, of a printed table


def record(network: str, seed: int, top1: float, setting: str = '-') -> dict:
    curve = [dict(epoch=epoch, loss=4.0 / epoch, top1_error=top1 + 20 - epoch, top5_error=20.0) for epoch in (1, 2, 20)]
    return dict(network=network, system=network.title(), setting=setting, seed=seed, epochs=20, top1_error=top1,
                top5_error=top1 / 4, curve=curve, images_per_s=200.4, machine='a core', versions=dict(torch='2'),
                interruptions=seed)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    errors = {('resnet-38', '-'): [40.0, 41.0, 42.0], ('a-context-block', 'stages 1,2'): [39.0, 39.0, 39.0]}
    for (network, setting), values in errors.items():
        for seed, top1 in enumerate(values):
            (tmp_path / f'{network}_seed{seed}.json').write_text(json.dumps(record(network, seed, top1, setting)))
    return tmp_path


def test_tables_begin_with_the_plain_network(folder):
    found = report.read_records(folder)
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in report.summary(found).splitlines()[2:]]
    assert lines[0] == ['Resnet-38', 'top-1 error', '41.00 ± 1.00', '3', '', '']
    assert lines[2] == ['A-Context-Block (stages 1,2)', 'top-1 error', '39.00 ± 0.00', '3', '-2.00 (n = 3)',
                        '-4.48 to +0.48']  # fmt: skip
    second = [cell.strip() for cell in report.per_seed(found).splitlines()[3].split('|')[1:-1]]
    assert second == ['Resnet-38', '1', '20', '41.00', '10.25', '200', '1']


def test_the_command_prints_and_draws(folder, capsys, monkeypatch):
    figure = folder / 'figure.png'
    monkeypatch.setattr('sys.argv', ['report', '--results', str(folder), '--figure', str(figure)])
    report.main()
    assert 'minus plain' in capsys.readouterr().out
    assert Image.open(figure).size == (1350, 540)


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no records'):
        report.read_records(tmp_path)


def test_the_published_tables_are_those_of_the_records():
    page = (report.ROOT / 'docs/results.md').read_text()
    plain, other = report.read_records(report.RESULTS).values()
    assert [one['seed'] for one in plain] == [one['seed'] for one in other] == [0, 1, 2]
    for one in (*plain, *other):
        errors = f'{one["top1_error"]:.2f} | {one["top5_error"]:.2f}'
        assert f'| {one["seed"]} | {errors} | {one["images_per_s"]:.0f} | {one["interruptions"]} |' in page
    for metric in report.LABELS:
        pairs = [mine[metric] - theirs[metric] for mine, theirs in zip(other, plain, strict=True)]
        mean, half = statistics.fmean(pairs), T_2 * statistics.stdev(pairs) / math.sqrt(3)
        errors = [one[metric] for one in other]
        row = f'| {statistics.fmean(errors):.2f} ± {statistics.stdev(errors):.2f} '
        assert f'{row}| {mean:+.2f} | {mean - half:+.2f} to {mean + half:+.2f} |' in page
