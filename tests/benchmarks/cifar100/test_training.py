"""Trainings resume bit for bit, stop within the budget, share a device and report failures; their table is right."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm
from markdown_tables import cells

from benchmarks.cifar100.__main__ import parse_options
from benchmarks.cifar100.rows import Row, choose_rows
from benchmarks.cifar100.table import table, write_table
from benchmarks.cifar100.training import train_all
from mmsb.analysis import zoo
from mmsb.checkpoints.load import load_checkpoint
from mmsb.datasets import cifar

ROOT = Path(__file__).resolve().parents[3]
BIASED = 'cifar100/sb-resnet38_b64-300e_cifar100.py'
SMALL = Row('first', 'SB-ResNet-11', '-', BIASED, 'depth=11')


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Folder with 70 training and 50 test images of 10 classes."""
    folder, generator = tmp_path_factory.mktemp('data'), torch.Generator().manual_seed(0)
    for split, count in dict(train=70, test=50).items():
        images = torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 10, (count,), generator=generator, dtype=torch.uint8)
        cifar.write(images.numpy(), labels.numpy(), folder / f'{split}.npz')
    return folder


@pytest.fixture
def flags(data, tmp_path):
    """Return a function that makes the command line of a short training, with output in a folder of this test."""

    def make(folder: str, *more, epochs: int = 1) -> list[str]:
        return ['--data', str(data), '--work-dir', str(tmp_path / folder), '--epochs', str(epochs), *map(str, more)]

    return make


def _train(flags: list[str], *rows_and_seeds: tuple[Row, int]) -> list[dict]:
    """Train on the device given by the flags; return the records."""
    options = parse_options(flags)
    train_all(rows_and_seeds, options)
    return _records(options.work_dir)


def _records(work_dir: str) -> list[dict]:
    return json.loads(Path(work_dir, 'results.json').read_text())


def _stop_in_epoch(epoch: int, python: str, flags: list[str]) -> None:
    """Run the command and terminate it in the given epoch."""
    command = [python, '-m', 'benchmarks.cifar100', *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if f' epoch {epoch - 1} ' in line:
                process.terminate()
                break
    assert process.returncode == -signal.SIGTERM


def test_stopped_training_resumes_to_the_same_bits(flags):
    how = dict(epochs=5)
    (row,) = choose_rows(['sb-resnet-38-stages-1-2'])
    often = ['--save-every', 2, '--eval-every', 2]
    (whole,) = _train(flags('whole', *often, **how), (row, 1))
    _stop_in_epoch(4, warm.python(), flags('stopped', *often, '--rows', row.name, '--seeds', 1, **how))
    path = Path(flags('stopped')[3], f'{row.name}_seed1.pth')
    assert 2 <= load_checkpoint(path)['meta']['epoch'] < 5
    (resumed,) = _train(flags('stopped', *often, **how), (row, 1))
    assert resumed['epochs_done'] == whole['epochs_done'] == 5
    first, again = (load_checkpoint(Path(flags(folder)[3], path.name)) for folder in ('whole', 'stopped'))
    for part in ('state_dict', 'momentum'):
        assert all(torch.equal(value, again[part][key]) for key, value in first[part].items())
    assert [{**entry, 'train_s': 0} for entry in whole['history']] == [
        {**entry, 'train_s': 0} for entry in resumed['history']
    ]


def test_checkpoint_of_another_recipe_is_refused(flags):
    _train(flags('out'), (SMALL, 1))
    with pytest.raises(ValueError, match='trained with another recipe'):
        _train(flags('out', epochs=2), (SMALL, 1))


def test_budget_stops_after_whole_epochs_and_keeps_them(flags):
    for budget_s in (4, 16, 64):  # on a busy machine, the first budget may end before an epoch does
        how = flags('out', '--budget-s', budget_s, '--save-every', 100_000, '--eval-every', 100_000, epochs=100_000)
        train_all([(SMALL, 1)], parse_options(how))
        done = load_checkpoint(Path(how[3], f'{SMALL.name}_seed1.pth'))['meta']['epoch']
        if done:
            break
    assert 0 < done < 100_000
    assert [record['epochs_done'] for record in _records(how[3])] == [done]
    assert f'| {done} of 100000 |' in write_table(how[3])


def test_diverged_training_is_reported_and_leaves_the_others_alone(flags, tmp_path):
    config = tmp_path / 'diverges.py'
    config.write_text(f"_base_ = '{zoo.CONFIGS / BIASED}'\noptim_wrapper = dict(optimizer=dict(lr=float('inf')))\n")
    how = flags('out')
    records = _train(how, (Row('first', 'Diverging', '-', str(config), 'depth=11'), 1), (SMALL, 1))
    assert [record['failure'] for record in records] == ['the loss is nan after epoch 1', '']
    assert [path.name for path in Path(how[3]).glob('*.pth')] == [f'{SMALL.name}_seed1.pth']
    assert 'seed 1: the loss is nan' in write_table(how[3])


def test_testing_gives_the_error_in_the_record(flags, tmp_path, run_tool):
    how = flags('out', '--subset-classes', 10)
    (record,) = _train(how, (SMALL, 1))
    dataset = [f'test_dataloader.dataset.{key}' for key in ('type=mmsb.CIFAR100Arrays', f'data_root={how[1]}')]
    done = run_tool('test.py', zoo.CONFIGS / BIASED, Path(how[3], f'{SMALL.name}_seed1.pth'), '--work-dir', tmp_path,
                    '--cfg-options', 'model.backbone.depth=11', 'test_dataloader.num_workers=0',
                    'test_dataloader.persistent_workers=False', *dataset, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    tested = json.loads(next(tmp_path.glob('2*/*.json')).read_text().splitlines()[-1])
    for k in (1, 5):
        assert 100 - tested[f'accuracy/top{k}'] == pytest.approx(record['history'][-1][f'top{k}_err'], abs=1e-3)


@pytest.mark.parametrize(('as_paper', 'shown'), [(True, True), (False, False)])
def test_papers_figure_is_shown_only_beside_its_recipe(as_paper, shown):
    history = [dict(epoch=1, train_s=2.0, side_by_side=1, top1_err=24.0, top5_err=6.0)]
    row = dict(row='resnet-38', system='ResNet-38', setting='-', config='c', backbone_options='', top1_err='23.98',
               top5_err='5.73')  # fmt: skip
    how = dict(recipe=dict(epochs=1), precision='bf16', mode='graph', first_classes=None, machine='x', torch='2')
    record = dict(**row, **how, images=100, as_paper=as_paper, failure='', epochs_done=1, history=history)
    other = [dict(history[0], top1_err=25.0)]
    line = table([dict(record, seed=0), dict(record, seed=1, history=other)]).splitlines()[2]
    assert cells(line)[3:7] == ['24.00, 25.00', '24.50', '0.71', '23.98' if shown else '']


def test_published_table_is_that_of_the_published_records():
    results = ROOT / 'benchmarks/results/cifar100-10-classes-12-epochs-cpu.json'
    assert table(json.loads(results.read_text())) == results.with_suffix('.md').read_text()


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--streams', '2'], '--streams 2 needs a GPU'),
        (['--streams', '0'], '--streams must be an integer of at least 1, got 0'),
        (['--save-every', '-1'], '--save-every must be an integer of at least 1, got -1'),
        (['--device', 'gpu'], "--device must be cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_wrong_options_are_refused(flags, said):
    with pytest.raises(ValueError, match=said):
        parse_options(['--device', 'cpu', *flags])


def test_mode_that_the_device_lacks_is_refused(flags):
    with pytest.raises(ValueError, match=r"mode on cpu must be one of \['eager'\], got 'graph'"):
        _train(flags('out', '--mode', 'graph'), (SMALL, 1))


@pytest.mark.gpu
def test_trainings_side_by_side_on_a_gpu_are_those_alone_and_resume(flags):
    how = dict(epochs=60)
    both = [(row, 1) for row in choose_rows(['first'])]
    alone = _train(flags('alone', '--save-every', 2, '--streams', 1, **how), *both)
    beside = flags('beside', '--save-every', 2, '--streams', 2, **how)
    _stop_in_epoch(4, sys.executable, [*beside, '--seeds', '1'])
    for ours, theirs in zip(_train(beside, *both), alone, strict=True):
        losses = [[entry['loss'] for entry in record['history']] for record in (ours, theirs)]
        assert len(losses[0]) == len(losses[1]) == 60
        assert losses[0][:2] == pytest.approx(losses[1][:2], rel=0.02), 'later: sums on a GPU have no fixed order'
