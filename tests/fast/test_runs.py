"""Runs: they go on, stop in time, share a device, say what fails, and stand in the table as they were."""

import itertools
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmsb.analysis import zoo
from mmsb.checkpoints.load import load_checkpoint
from mmsb.datasets import cifar
from mmsb.fast import plan, runs
from mmsb.fast.recipe import read_recipe
from mmsb.fast.report import collect, table
from mmsb.fast.run import Options, Run
from mmsb.fast.trainer import Trainer

BIASED = 'cifar100/sb-resnet38_b64-300e_cifar100.py'
SMALL = plan.Row('first', 'SB-ResNet-11', '-', BIASED, 'depth=11')
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='a CUDA graph needs a GPU')


@pytest.fixture
def options(tmp_path, pictures) -> Options:
    for seed, (split, count) in enumerate(dict(train=70, test=50).items()):
        images, labels = pictures(count, seed)
        labels = (labels % 10).to(torch.uint8)
        cifar.write(images.permute(0, 2, 3, 1).numpy(), labels.numpy(), tmp_path / f'data/{split}.npz')
    how = dict(device='cpu', mode='eager', precision='fp32', epochs=4, save_every=2, eval_every=2)
    return Options(data=str(tmp_path / 'data'), work_dir=str(tmp_path / 'whole'), **how)


def _checkpoint(options: Options) -> dict:
    return load_checkpoint(f'{options.work_dir}/{SMALL.name}_seed1.pth')


def _interrupt(monkeypatch, chosen: list[tuple[plan.Row, int]], options: Options) -> None:
    """Train, and be interrupted in the fourth epoch."""
    step = Run.step

    def interrupted(run, index):
        if run.epoch == 3:
            raise KeyboardInterrupt
        step(run, index)

    with monkeypatch.context() as patched:
        patched.setattr(Run, 'step', interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.train_all(chosen, options)


def test_interrupted_run_ends_with_the_same_bits(options, monkeypatch):
    runs.train_all([(SMALL, 1)], options)
    other = replace(options, work_dir=options.work_dir + '-resumed')
    _interrupt(monkeypatch, [(SMALL, 1)], other)
    assert _checkpoint(other)['meta']['epoch'] == 2
    runs.train_all([(SMALL, 1)], other)
    first, again = _checkpoint(options), _checkpoint(other)
    assert again['meta']['epoch'] == 4
    for part in ('state_dict', 'momentum'):
        assert all(torch.equal(value, again[part][key]) for key, value in first[part].items())
    figures = [[{**entry, 'train_s': 0} for entry in found['meta']['history']] for found in (first, again)]
    assert figures[0] == figures[1]
    with pytest.raises(ValueError, match='another recipe'):
        runs.train_all([(SMALL, 1)], replace(other, epochs=5))


def test_budget_stops_after_whole_epochs_and_keeps_them(options, monkeypatch):
    seconds = itertools.count()  # one at each look at the clock: two of them in an epoch
    monkeypatch.setattr(runs, 'time', SimpleNamespace(time=lambda: next(seconds)))
    options = replace(options, epochs=1000, save_every=1000, eval_every=1000, budget_s=10)
    runs.train_all([(SMALL, 1)], options)
    assert _checkpoint(options)['meta']['epoch'] == 4, 'begun in seconds 1, 3, 5 and 7; the fifth would end after 10'
    assert json.loads(Path(options.work_dir, 'results.json').read_text())[0]['epochs_done'] == 4
    assert '| 4 of 1000 |' in collect(options.work_dir)


@pytest.mark.parametrize(('alive', 'epochs'), [(True, 2), (False, 0)])
def test_process_whose_parent_is_gone_trains_no_further(options, monkeypatch, alive, epochs):
    parent = SimpleNamespace(is_alive=lambda: alive)
    monkeypatch.setattr(multiprocessing, 'parent_process', lambda: parent)
    runs.train_all([(SMALL, 1)], replace(options, epochs=2))
    records = json.loads(Path(options.work_dir, 'results.json').read_text())
    assert sum(record['epochs_done'] for record in records) == epochs


def test_diverged_run_is_told_and_leaves_the_others_alone(options, monkeypatch):
    step = Trainer.step
    monkeypatch.setattr(Trainer, 'step', lambda self, *batch: (step(self, *batch), self.loss_sum.fill_(float('nan'))))
    runs.train_all([(SMALL, 1), (SMALL, 2)], replace(options, epochs=1))
    records = json.loads(Path(options.work_dir, 'results.json').read_text())
    assert [record['failure'] for record in records] == ['the loss is nan after epoch 1'] * 2


def test_testing_gives_the_error_of_the_record(options, tmp_path, run_tool):
    options = replace(options, epochs=1, first_classes=10)
    runs.train_all([(SMALL, 1)], options)
    dataset = [f'test_dataloader.dataset.{key}' for key in ('type=mmsb.CIFAR100Arrays', f'data_root={options.data}')]
    checkpoint = Path(options.work_dir, f'{SMALL.name}_seed1.pth')
    done = run_tool('test.py', zoo.CONFIGS / BIASED, checkpoint, '--work-dir', tmp_path, '--cfg-options',
                    'model.backbone.depth=11', 'test_dataloader.num_workers=0',
                    'test_dataloader.persistent_workers=False', *dataset, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    tested = json.loads(next(tmp_path.glob('2*/*.json')).read_text().splitlines()[-1])
    entry = _checkpoint(options)['meta']['history'][-1]
    for k in (1, 5):
        assert 100 - tested[f'accuracy/top{k}'] == pytest.approx(entry[f'top{k}_err'], abs=1e-3)


def test_plan_has_the_papers_first_rows_first():
    rows = plan.rows()
    assert [row.name for row in plan.choose_rows(['first'])] == ['resnet-38', 'sb-resnet-38-stages-1-2']
    assert [row.name for row in rows[:4]][2:] == ['resnet-65', 'sb-resnet-65-stages-1-2']
    assert (rows[1].top1_err, rows[1].top5_err) == ('22.44', '4.99')
    assert len({row.name for row in rows}) == len(rows)
    for config in {row.config for row in rows}:
        read_recipe(zoo.load(config))
    with pytest.raises(ValueError, match=r"did you mean 'resnet-38'"):
        plan.choose_rows(['resnet38'])


@pytest.mark.parametrize(('as_paper', 'shown'), [(True, True), (False, False)])
def test_papers_figure_stands_only_beside_its_recipe(as_paper, shown):
    history = [dict(epoch=1, train_s=2.0, side_by_side=1, top1_err=24.0, top5_err=6.0)]
    row = dict(row='resnet-38', system='ResNet-38', setting='-', config='c', backbone_options='', top1_err='23.98',
               top5_err='5.73')  # fmt: skip
    how = dict(recipe=dict(epochs=1), precision='bf16', mode='graph', first_classes=None, machine='x', torch='2')
    record = dict(**row, **how, images=100, as_paper=as_paper, failure='', epochs_done=1, history=history)
    other = [dict(history[0], top1_err=25.0)]
    line = table([dict(record, seed=0), dict(record, seed=1, history=other)]).splitlines()[2]
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells[3:7] == ['24.00, 25.00', '24.50', '0.71', '23.98' if shown else '']


def test_processes_share_the_runs_and_say_what_fails(options, capfd):
    runs.train_all([(SMALL, 1)], replace(options, epochs=1))
    capfd.readouterr()
    with pytest.raises(RuntimeError, match='1 of 2 processes failed'):
        runs.train_all([(SMALL, 1), (SMALL, 2)], replace(options, epochs=2, jobs=2))
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith('is of a run with another recipe: name another work dir')
    records = json.loads(Path(options.work_dir, 'results.json').read_text())
    assert [(record['seed'], record['epochs_done']) for record in records] == [(1, 1), (2, 2)]


@pytest.mark.parametrize('what', [dict(streams=2), dict(jobs=0), dict(mode='graph')])
def test_options_that_do_not_go_together_are_refused(options, what):
    with pytest.raises(ValueError, match=next(iter(what))):
        runs.train_all([(SMALL, 1)], replace(options, **what))


@needs_gpu
def test_runs_side_by_side_on_a_gpu_are_those_alone_and_go_on(options, monkeypatch):
    both = [(SMALL, 1), (SMALL, 2)]
    alone = replace(options, device='cuda', mode='graph')
    beside = replace(alone, work_dir=options.work_dir + '-beside', streams=2)
    runs.train_all(both, alone)
    _interrupt(monkeypatch, both, beside)
    runs.train_all(both, beside)
    losses = [
        [[entry['loss'] for entry in record['history']] for record in json.loads(path.read_text())]
        for path in (Path(how.work_dir, 'results.json') for how in (alone, beside))
    ]
    for ours, theirs in zip(*losses, strict=True):
        assert len(ours) == len(theirs) == 4
        assert ours[:2] == pytest.approx(theirs[:2], rel=0.02), 'later ones drift: sums on a GPU have no fixed order'
