"""The trainings at a small budget: commands that `tools/train.py` understands, records, and no work done twice."""

import json
import os

import pytest
from mmengine.config import Config

from benchmarks.cifar100 import budget


@pytest.fixture
def options(tmp_path):
    for split in ('train', 'test'):
        (tmp_path / f'{split}.npz').touch()
    folders = ['--work-dir', str(tmp_path / 'work'), '--data', str(tmp_path), '--results', str(tmp_path / 'results')]
    return budget.parse_options(folders)


def test_the_recipe_is_the_configs_in_20_epochs(options):
    row = options.rows[0]
    command = budget.command_of(row, 2, options.data, options.work_dir)
    given = command[command.index('--cfg-options') + 1 :]
    given = dict(option.split('=', 1) for option in given)
    paper = Config.fromfile(budget.ROOT / command[1])
    assert int(given.pop('train_cfg.max_epochs')) * 15 == paper.train_cfg.max_epochs
    milestones = given.pop('param_scheduler.milestones').split(',')
    assert [15 * int(epoch) for epoch in milestones] == paper.param_scheduler.milestones
    assert all('dataloader' in key for key in given), 'no other setting of the training changes'
    assert not any(key.startswith('train_dataloader.batch') for key in given)
    assert command[command.index('--seed') + 1] == '2'


def test_a_record_counts_repeated_steps_once(options, tmp_path):
    folder = tmp_path / 'run'
    starts = [
        [dict(lr=0.1, loss=4.0, step=1, epoch=1, time=0.5), dict(lr=0.1, loss=9.0, step=2, epoch=1, time=0.5)],
        [],  # interrupted before the first line of its log
        [dict(lr=0.1, loss=2.0, step=2, epoch=1, time=0.25), {'accuracy/top1': 40.0, 'accuracy/top5': 70.0, 'step': 1},
         dict(lr=0.1, loss=1.0, step=3, epoch=2, time=0.25), {'accuracy/top1': 60.5, 'accuracy/top5': 90.0, 'step': 2}],
    ]  # fmt: skip
    for number, lines in enumerate(starts):
        log = folder / f'2026010{number}/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.with_name('config.py').touch()
        if lines:
            log.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    record = budget.read_record(options.rows[0], 0, folder)
    assert record['curve'] == [
        dict(epoch=1, loss=3.0, top1_error=60.0, top5_error=30.0),
        dict(epoch=2, loss=1.0, top1_error=39.5, top5_error=10.0),
    ]
    assert (record['top1_error'], record['top5_error'], record['epochs']) == (39.5, 10.0, 2)
    assert (record['interruptions'], record['images_per_s']) == (2, 256.0)


def test_what_is_finished_or_being_trained_is_left_alone(options, monkeypatch):
    trained = []
    monkeypatch.setattr(budget, 'parse_options', lambda: options)
    monkeypatch.setattr(budget, 'train', lambda row, seed, *_: trained.append((row.name, seed)))
    first, second = (row.name for row in options.rows)
    options.results.mkdir()
    (options.results / f'{first}_seed1.json').touch()
    busy = os.path.join(options.work_dir, f'{second}_seed0', 'lock')
    with budget.locked(budget.Path(busy)) as lock:
        assert lock is not None
        budget.main()
    assert trained == [(first, 0), (second, 1), (first, 2), (second, 2)]


@pytest.mark.parametrize(('args', 'named'), [
    (['--rows', 'resnet-39'], 'resnet-39'),
    (['--data', 'nowhere'], "'nowhere' has no train.npz"),
])  # fmt: skip
def test_mistakes_are_named(args, named):
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        budget.parse_options(['--work-dir', 'work', *args])
