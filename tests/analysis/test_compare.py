"""Runs side by side, on work dirs written by hand; the expected values are worked out in the tests."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from mmsb.analysis.compare import UNSET, as_csv, as_json, compare, differing, metrics_of, table
from mmsb.analysis.compare_figure import draw, mean_curve, plot, smooth
from mmsb.analysis.paired import table_of_differences
from mmsb.analysis.run_logs import read_run

CONFIG = """
default_scope = {scope!r}
model = dict(type={model!r}, backbone=dict(type='mmsb.SBResNetCifar', depth=11, spatial_bias={bias}))
train_dataloader = dict(batch_size=8)
train_cfg = dict({loop})
default_hooks = dict(logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch={by_epoch}))
randomness = dict(seed={seed})
work_dir = {work_dir!r}
launcher = {launcher!r}
resume = {resume}
{more}
"""
EPOCHS = 'by_epoch=True, max_epochs=2'


def write_start(
    work_dir: Path,
    records: list[dict],
    name: str = '20260101_000000',
    *,
    seed: int | None = 0,
    loop: str = EPOCHS,
    bias: str = 'dict(num_maps=3)',
    scope: str = 'mmpretrain',
    model: str = 'ImageClassifier',
    launcher: str = 'none',
    resume: bool = False,
    more: str = '',
) -> Path:
    """Write what one start of a training leaves."""
    vis_data = work_dir / name / 'vis_data'
    vis_data.mkdir(parents=True)
    (vis_data / 'scalars.json').write_text(''.join(json.dumps(record) + '\n' for record in records))
    by_epoch = 'max_epochs' in loop
    values = dict(
        seed=seed, loop=loop, bias=bias, scope=scope, model=model, launcher=launcher, resume=resume, more=more
    )
    (vis_data / 'config.py').write_text(CONFIG.format(**values, by_epoch=by_epoch, work_dir=str(work_dir)))
    return work_dir


def train(step: int, loss: float, time: float = 0.5, **more) -> dict:
    return dict(lr=0.1, data_time=0.1, time=time, loss=loss, iter=step, step=step, **more)


def val(step: int, value: float, metric: str = 'accuracy/top1') -> dict:
    return {metric: value, 'data_time': 0.1, 'time': 9.0, 'step': step}


def two_epochs(*values: float) -> list[dict]:
    records = []
    for epoch, value in enumerate(values, 1):
        records += [train(10 * epoch, 1 / epoch, epoch=epoch), val(epoch, value)]
    return records


def test_what_a_resume_repeats_counts_once(tmp_path):
    first = [
        train(10, 1.0),
        train(20, 0.9),
        val(20, 50.0, 'mIoU'),
        train(30, 0.8),
        train(40, 0.7),
        val(40, 60.0, 'mIoU'),
    ]
    second = [train(25, 0.5), train(35, 0.4)]  # goes on from 20
    loop = 'by_epoch=False, max_iters=100'
    write_start(tmp_path, first, '20260101_000000', loop=loop)
    write_start(tmp_path, second, '20260102_000000', loop=loop, resume=True)
    run = read_run(tmp_path)
    assert run.curve('loss') == [(10, 1.0), (20, 0.9), (25, 0.5), (35, 0.4)]
    assert run.curve('mIoU') == [(20, 50.0)]
    assert (run.done, run.total, run.unit, run.val_unit) == (35, 100, 'iterations', 'iteration')


def test_a_validation_is_repeated_before_anything_is_logged(tmp_path):
    write_start(tmp_path, two_epochs(50.0, 60.0), '20260101_000000')
    write_start(tmp_path, [val(1, 51.0), train(20, 0.4, epoch=2), val(2, 61.0)], '20260102_000000', resume=True)
    assert read_run(tmp_path).curve('accuracy/top1') == [(1, 51.0), (2, 61.0)]


def test_a_run_in_progress(tmp_path):
    write_start(tmp_path, [*two_epochs(50.0), train(20, 0.4, epoch=2)])
    scalars = tmp_path / '20260101_000000/vis_data/scalars.json'
    with scalars.open('a') as file:
        file.write('{"lr": 0.1, "loss": 0.3, "st')
    (row,) = compare([tmp_path])
    assert row.runs[0].curve('loss') == [(10, 1.0), (20, 0.4)]
    assert row.progress == '1 of 2 epochs, in progress'
    (tmp_path / 'epoch_2.pth').touch()  # without validation, a checkpoint shows that the epoch is over
    assert compare([tmp_path])[0].progress == '2 of 2 epochs'


def test_checkpoints_of_an_older_run_do_not_count(tmp_path):
    write_start(tmp_path, [train(40, 1.0)], loop='by_epoch=False, max_iters=1000')
    (tmp_path / 'iter_900.pth').touch()
    (tmp_path / 'iter_45.pth').touch()
    assert read_run(tmp_path).done == 45


def test_seeds_are_one_row(tmp_path):
    values = {0: (50.0, 61.0), 1: (52.0, 64.0), 2: (57.0, 58.0)}
    paths = [write_start(tmp_path / f'sb-seed{seed}', two_epochs(*two), seed=seed) for seed, two in values.items()]
    plain = write_start(tmp_path / 'plain', two_epochs(40.0, 45.0), bias='None')
    sb, other = compare([*reversed(paths), plain])
    assert (sb.name, sb.seeds, other.name, other.seeds) == ('sb', [0, 1, 2], 'plain', [0])
    last = sb.last['accuracy/top1']
    assert (last.mean, last.n) == (61.0, 3)
    assert last.std == pytest.approx(3.0)  # sqrt((0 + 9 + 9) / 2)
    assert other.last['accuracy/top1'].std is None
    assert sb.differences == {'model.backbone.spatial_bias': 'dict(num_maps=3)'}
    assert other.differences == {'model.backbone.spatial_bias': 'None'}
    assert sb.images_per_s.mean == 8 / 0.5
    header, (first, second) = table([sb, other], metrics_of([sb, other]))
    assert dict(zip(header, first, strict=True))['accuracy/top1'] == '61 ± 3'
    assert dict(zip(header, second, strict=True))['accuracy/top1'] == '45'


@pytest.mark.parametrize(
    ('folders', 'name'),
    [
        (('sb-resnet38-0', 'sb-resnet38-1'), 'sb-resnet38'),
        (('resnet38', 'resnet38_again'), 'resnet38'),
        (('sb-10', 'sb-11'), 'sb'),
        (('sb1', 'sb10'), 'sb'),
        (('sb_seed_1', 'sb_seed_2'), 'sb'),
    ],
)
def test_a_row_keeps_the_number_in_its_name(tmp_path, folders, name):
    paths = [write_start(tmp_path / folder, two_epochs(50.0), seed=seed) for seed, folder in enumerate(folders)]
    assert [row.name for row in compare(paths)] == [name]


def test_seeds_are_compared_where_all_have_arrived(tmp_path):
    done = write_start(tmp_path / 'a0', two_epochs(50.0, 70.0))
    behind = write_start(tmp_path / 'a1', two_epochs(52.0), seed=1)
    new = write_start(tmp_path / 'a2', [train(5, 2.0, epoch=1)], seed=2)
    (row,) = compare([done, behind, new])
    assert (row.last['accuracy/top1'].mean, row.last['accuracy/top1'].n) == (51.0, 2)
    assert row.best['accuracy/top1'].mean == statistics.mean([70.0, 52.0])
    assert row.progress == '0 to 2 of 2 epochs, in progress'


def test_runs_without_a_seed(tmp_path):
    paths = [write_start(tmp_path / f'run-{i}', two_epochs(50.0, 60.0 + i), seed=None) for i in (0, 1)]
    (row,) = compare(paths)
    assert (row.seeds, row.last['accuracy/top1'].mean) == ([None, None], 60.5)


@pytest.mark.parametrize('values', [(float('nan'), 50.0), (50.0, float('nan'))])
def test_the_best_value_is_a_number(tmp_path, values):
    (row,) = compare([write_start(tmp_path / 'run', two_epochs(*values))])
    assert row.best['accuracy/top1'].mean == 50


@pytest.mark.parametrize(
    ('changes', 'rows'),
    [
        (dict(launcher='none', more="log_to = 'wandb'"), 1),
        (dict(more='find_unused_parameters = True'), 2),
        (dict(more="load_from = 'other.pth'"), 2),
        (dict(resume=True, more="load_from = 'a1/iter_5.pth'"), 1),
    ],
)
def test_what_makes_a_row_of_its_own(tmp_path, changes, rows):
    one = write_start(tmp_path / 'a0', two_epochs(50.0, 70.0))
    two = write_start(tmp_path / 'a1', two_epochs(50.0, 70.0), seed=1, **changes)
    assert len(compare([one, two])) == rows


def test_another_number_of_processes_is_another_row(tmp_path):
    one = write_start(tmp_path / 'a0', two_epochs(50.0, 70.0))
    two = write_start(tmp_path / 'a1', two_epochs(50.0, 70.0), launcher='pytorch')
    (two / '20260101_000000/20260101_000000.log').write_text('    Distributed training: True\n    GPU number: 4\n')
    rows = compare([one, two])
    assert [row.images_per_s.mean for row in rows] == [16, 64]
    assert rows[1].differences == {'processes': '4'}


def test_three_libraries_in_one_table(tmp_path):
    loop = 'by_epoch=False, max_iters=20'
    paths = [
        write_start(tmp_path / 'classes', two_epochs(50.0, 70.0)),
        write_start(tmp_path / 'boxes', [train(10, 1.0, epoch=1), val(1, 0.25, 'coco/bbox_mAP')], scope='mmdet'),
        write_start(tmp_path / 'masks', [train(20, 1.0), val(20, 30.0, 'mIoU')], scope='mmseg', loop=loop),
    ]
    rows = compare(paths)
    assert metrics_of(rows) == ['accuracy/top1', 'coco/bbox_mAP', 'mIoU']
    header, cells = table(rows, metrics_of(rows))
    assert [line[header.index('coco/bbox_mAP')] for line in cells] == ['-', '0.25', '-']
    assert as_csv(rows[2], ['coco/bbox_mAP', 'mIoU'])['mIoU last mean'] == 30
    assert as_csv(rows[2], ['coco/bbox_mAP', 'mIoU'])['coco/bbox_mAP last mean'] is None


def test_parameters_are_those_of_the_network(tmp_path):
    head = "head=dict(type='LinearClsHead', num_classes=10, in_channels=256)"
    more = f"model.update(neck=dict(type='GlobalAveragePooling'), {head})"
    path = write_start(tmp_path / 'run', two_epochs(50.0, 70.0), bias='None', more=more)
    # stem; per stage (16, 32, 64, expansion 4): 1x1, 3x3, 1x1, the projection; each with a batch norm; the classifier
    expected, inside = 3 * 16 * 9 + 2 * 16, 16
    for width in (16, 32, 64):
        convolutions = inside * width + 9 * width**2 + 4 * width**2 + inside * 4 * width
        expected += convolutions + 2 * (width + width + 4 * width + 4 * width)
        inside = 4 * width
    assert compare([path])[0].params == expected + 256 * 10 + 10


def test_a_network_that_can_not_be_built_has_no_parameters(tmp_path):
    path = write_start(tmp_path / 'run', two_epochs(50.0, 70.0), model='nothing.Known')
    (row,) = compare([path])
    assert row.params is None
    assert row.last['accuracy/top1'].mean == 70


@pytest.mark.parametrize(
    ('configs', 'found'),
    [
        ([dict(a=1, b=dict(c=2)), dict(a=1, b=dict(c=3))], {'b.c': [2, 3]}),
        ([dict(b=dict(c=2)), dict(b=None)], {'b': [dict(c=2), None]}),
        ([dict(a=1), {}], {'a': [1, UNSET]}),
        ([dict(o=dict(type='A', x=1)), dict(o=dict(type='B', y=1))], {'o': [dict(type='A', x=1), dict(type='B', y=1)]}),
        ([dict(a=[dict(x=1), dict(y=2)]), dict(a=[dict(x=1), dict(y=3)])], {'a.1.y': [2, 3]}),
        ([dict(a=[1, 2]), dict(a=[1, 3])], {'a': [[1, 2], [1, 3]]}),
        ([dict(a=1), dict(a=1)], {}),
    ],
)
def test_differences(configs, found):
    assert differing(configs) == found


def test_mean_curve_is_where_all_seeds_are():
    steps, mean, std = mean_curve(
        [(np.array([1, 2, 3]), np.array([1.0, 2, 3])), (np.array([2, 4]), np.array([4.0, 8]))]
    )
    assert steps.tolist() == [2, 3]
    assert mean.tolist() == [3, 4.5]  # of (2, 4) and (3, 6)
    assert std == pytest.approx([2 / 2**0.5, 3 / 2**0.5])


def test_smoothing_keeps_a_line_and_the_number_of_points():
    assert smooth(np.arange(100.0))[5:95] == pytest.approx(np.arange(5, 95))
    assert smooth([3.0]).tolist() == [3]


@pytest.fixture
def rows(tmp_path):
    tricky = write_start(tmp_path / '_<b>$x$', two_epochs(50.0, float('nan')), bias='None')
    paths = [write_start(tmp_path / f'sb-{seed}', two_epochs(50.0 + seed, 70.0), seed=seed) for seed in (0, 1)]
    return compare([*paths, tricky])


def test_the_figure_names_its_axes_and_runs(rows, tmp_path):
    texts = {text.get_text() for text in draw(rows, ['accuracy/top1']).findobj(Text)}
    assert {'iteration', 'epoch', 'accuracy/top1, validation', 'training loss, smoothed'} <= texts
    assert any(text.startswith('sb (mean of 2 seeds') for text in texts)
    plot(rows, ['accuracy/top1'], tmp_path / 'curves.svg')  # a name is no formula
    assert '<svg' in (tmp_path / 'curves.svg').read_text()


def test_a_format_that_is_not_known_leaves_nothing(rows, tmp_path):
    with pytest.raises(ValueError, match="'xyz' is not supported"):
        plot(rows, [], tmp_path / 'curves.xyz')
    assert not list(tmp_path.glob('*curves*'))


def test_json_has_no_nan(rows):
    text = json.dumps([as_json(row) for row in rows], allow_nan=False)
    assert json.loads(text)[1]['metrics']['accuracy/top1']['last']['mean'] is None


def test_the_tool(tmp_path, run_tool):
    paths = [write_start(tmp_path / f'sb-{seed}', two_epochs(50.0, 70.0), seed=seed) for seed in (0, 1)]
    done = run_tool('analysis/compare.py', *paths, '--plot', 'c.png', '--json', 'c.json', '--csv',
                    'c.csv', cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '| sb  | 0, 1  | 2 of 2 epochs | 70 ± 0' in done.stdout
    assert '95 %' not in done.stdout  # there is nothing to compare it with
    assert (tmp_path / 'c.png').stat().st_size > 10_000
    assert json.loads((tmp_path / 'c.json').read_text())[0]['seeds'] == [0, 1]
    assert (tmp_path / 'c.csv').read_text().startswith('name,seeds,done,')


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"work dir '.*gone' does not exist"):
        compare([tmp_path / 'gone'])
    with pytest.raises(ValueError, match=r'has no logs of a training: expected lines in \*/vis_data/scalars.json'):
        compare([tmp_path])
    path = write_start(tmp_path / 'run', two_epochs(50.0))
    with pytest.raises(ValueError, match='is named twice'):
        compare([path, f'{path}/'])
    (path / '20260101_000000/vis_data/config.py').unlink()
    with pytest.raises(ValueError, match=r'has no config: expected 20260101_000000/vis_data/config.py or \*.py'):
        compare([path])
    with pytest.raises(NotADirectoryError, match='is a file'):
        compare([path / '20260101_000000/vis_data/scalars.json'])


def test_a_metric_that_never_was_a_number(tmp_path):
    (row,) = compare([write_start(tmp_path / 'run', two_epochs(float('nan'), float('nan')))])
    header, (cells,) = table([row], ['accuracy/top1'])
    assert cells[header.index('accuracy/top1')] == 'nan'
    assert as_json(row)['metrics']['accuracy/top1']['best'] is None


def test_each_row_is_compared_with_the_first(tmp_path):
    paths = [write_start(tmp_path / f'plain-{seed}', two_epochs(40.0, 45.0 + seed), seed=seed) for seed in (0, 1, 2)]
    sb = zip((0, 1, 3), (50.0, 53.0, 99.0), strict=True)
    paths += [write_start(tmp_path / f'sb-{seed}', two_epochs(1.0, last), seed=seed, bias='None') for seed, last in sb]
    header, lines = table_of_differences(compare(paths), ['accuracy/top1'])
    (cells,) = (dict(zip(header, line, strict=True)) for line in lines)  # 5 and 7
    assert (cells['run'], cells['minus plain'], cells['seeds'], cells['tells']) == ('sb', '+6', '2', 'no')
    assert cells['95 % interval'] == '-6.71 to +18.7'  # 6 -+ 12.7062 * sqrt(2) / sqrt(2)
    assert cells['seeds to tell such'] == '3'  # 4.302653 * sqrt(2) / sqrt(3) = 3.5
