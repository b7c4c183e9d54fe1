"""The fast path does what the project's own training does: the same recipe, pictures, steps and figures."""

import json
import multiprocessing
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.optim.scheduler import MultiStepLR
from mmengine.runner import set_random_seed
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample

from mmsb.analysis import zoo
from mmsb.datasets import cifar
from mmsb.engine.launcher import build_model
from mmsb.fast import plan, runs
from mmsb.fast.augment import augmented_epoch, crop_and_flip, draw
from mmsb.fast.recipe import read_recipe
from mmsb.fast.report import collect, table
from mmsb.fast.run import Options, Run
from mmsb.fast.trainer import Trainer
from mmsb.models.safe_load import load_checkpoint

PLAIN, BIASED = (f'cifar100/{name}_b64-300e_cifar100.py' for name in ('resnet38', 'sb-resnet38'))
SMALL = plan.Row('first', 'SB-ResNet-11', '-', BIASED, 'depth=11')
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='a CUDA graph needs a GPU')


def _pictures(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 100, (count,), generator=generator)


def _network(config: str, options: str = '', seed: int = 0):
    cfg = zoo.load(config, options)
    set_random_seed(seed)
    model = build_model(cfg)
    model.init_weights()
    return cfg, model


def _distance(first: dict, second: dict) -> float:
    """Measure how far apart two networks' parameters are."""
    keys = [key for key in first if key.endswith(('.weight', '.bias'))]
    return sum((first[key] - second[key]).double().square().sum().item() for key in keys) ** 0.5


def test_recipe_is_the_papers():
    recipe = read_recipe(zoo.load(BIASED))
    assert (recipe.batch_size, recipe.drop_last, recipe.epochs, recipe.lr) == (64, False, 300, 0.25)
    assert (recipe.crop_px, recipe.padding_px, recipe.pad_value, recipe.flip_prob) == (32, 4, 0, 0.5)
    assert (recipe.milestones, recipe.topk) == ((75, 150, 225), (1, 5))
    assert recipe.steps(50000) == 782


def test_learning_rates_are_those_of_the_configs_schedule():
    recipe = read_recipe(zoo.load(BIASED))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    schedule = MultiStepLR(optimizer, milestones=[75, 150, 225], gamma=0.1)
    for epoch in range(recipe.epochs):
        assert recipe.lr_of(epoch) == pytest.approx(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()


def test_shorter_schedule_scales_the_milestones():
    assert read_recipe(zoo.load(BIASED), epochs=12).milestones == (3, 6, 9)
    assert read_recipe(zoo.load(BIASED), epochs=1).lr_of(0) == 0.25


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'optim_wrapper.clip_grad': dict(max_norm=1)}, 'clip_grad'),
        ({'optim_wrapper.optimizer.dampening': 0.1}, 'dampening'),
        ({'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0)}, 'paramwise_cfg'),
        ({'param_scheduler.type': 'CosineAnnealingLR'}, 'CosineAnnealingLR'),
        ({'train_dataloader.dataset.pipeline.0.padding_mode': 'reflect'}, 'padding_mode'),
        ({'train_dataloader.dataset.pipeline.1.direction': 'vertical'}, 'direction'),
        ({'custom_hooks': [dict(type='EMAHook')]}, 'EMAHook'),
    ],
)
def test_what_the_fast_path_does_not_do_is_refused(changes, named):
    cfg = zoo.load(BIASED)
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=named):
        read_recipe(cfg)


def test_crops_and_flips_are_mmpretrains(monkeypatch):
    recipe = read_recipe(zoo.load(BIASED))
    images, labels = _pictures(40)
    drawn = draw(40, recipe, seed=3, epoch=5)
    ours, our_labels = augmented_epoch(images, labels, drawn, recipe)
    pipeline = [TRANSFORMS.build(dict(step)) for step in zoo.load(BIASED).train_dataloader.dataset.pipeline]
    for k in range(40):
        corner = iter([int(drawn.tops[k]), int(drawn.lefts[k])])
        side = 'horizontal' if drawn.flips[k] else None
        monkeypatch.setattr(np.random, 'randint', lambda low, high, corner=corner: next(corner))
        monkeypatch.setattr(np.random, 'choice', lambda sides, p, side=side: side)
        sample = dict(img=images[drawn.order[k]].permute(1, 2, 0).numpy())
        for transform in pipeline:
            sample = transform(sample)
        assert torch.equal(ours[k], sample['inputs'])
    assert torch.equal(our_labels, labels[drawn.order])


def test_padding_has_the_configs_value():
    images = torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)
    corner = torch.tensor([0])
    out = crop_and_flip(images, corner, corner, torch.tensor([True]), padding=4, pad_value=7)
    assert (out[0, :, :4] == 7).all()
    assert (out[0, :, :, -4:] == 7).all(), 'flipped'
    assert (out[0, :, 4:, :-4] == 9).all()


def test_every_corner_and_both_sides_are_as_likely():
    recipe = read_recipe(zoo.load(BIASED))
    drawn = draw(50000, recipe, seed=0, epoch=0)
    assert torch.equal(drawn.order.sort().values, torch.arange(50000))
    for offsets in (drawn.tops, drawn.lefts):
        assert np.bincount(offsets, minlength=9) / 50000 == pytest.approx(np.full(9, 1 / 9), abs=0.006)
    assert drawn.flips.double().mean() == pytest.approx(0.5, abs=0.01)
    again, other = draw(50000, recipe, seed=0, epoch=0), draw(50000, recipe, seed=1, epoch=0)
    assert torch.equal(drawn.order, again.order)
    assert not torch.equal(drawn.order, other.order)
    assert not torch.equal(draw(9, recipe, seed=0, epoch=1).order, draw(9, recipe, seed=1, epoch=0).order)


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('config', [PLAIN, BIASED])
def test_step_is_the_projects_own(config, channels_last):
    cfg, model = _network(config)
    _, twin = _network(config)
    trainer = Trainer(twin, cfg, read_recipe(cfg), channels_last=channels_last)
    trainer.set_lr(cfg.optim_wrapper.optimizer.lr)
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    total = 0.0
    for seed in range(3):
        images, labels = _pictures(8, seed)
        samples = [DataSample().set_gt_label(label) for label in labels]
        total += 8 * model.train_step(dict(inputs=images, data_samples=samples), wrapper)['loss'].item()
        trainer.step(images, labels)
    assert trainer.loss_sum.item() == pytest.approx(total, rel=1e-4)
    ours, theirs = twin.state_dict(), model.state_dict()
    if not channels_last:
        assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert _distance(ours, theirs) <= 1e-3 * _distance(theirs, _network(config)[1].state_dict())


@pytest.fixture
def options(tmp_path) -> Options:
    for seed, (split, count) in enumerate(dict(train=70, test=50).items()):
        images, labels = _pictures(count, seed)
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


def test_budget_stops_after_whole_epochs_and_keeps_them(options):
    options = replace(options, epochs=1000, save_every=1000, eval_every=1000, budget_s=2)
    start = time.time()
    runs.train_all([(SMALL, 1)], options)
    assert time.time() - start < 10
    done = _checkpoint(options)['meta']['epoch']
    assert 0 < done < 1000
    assert json.loads(Path(options.work_dir, 'results.json').read_text())[0]['epochs_done'] == done
    assert f'| {done} of 1000 |' in collect(options.work_dir)


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


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        (dict(data_preprocessor=dict(mean=None)), 'no mean'),
        (dict(data_preprocessor=dict(to_rgb=True)), 'to_rgb'),
        (dict(model=dict(head=dict(cal_acc=True))), 'cal_acc'),
        (dict(model=dict(backbone=dict(drop_path_rate=0.1))), 'random numbers'),
    ],
)
def test_networks_with_more_in_their_step_are_refused(changes, named):
    cfg = zoo.load(BIASED, 'depth=11')
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=named):
        Trainer(build_model(cfg), cfg, read_recipe(cfg))


BATCHES = [(16, 0.1), (16, 0.1), (7, 0.01), (16, 0.01)]  # images, learning rate


class _Graph:
    """Stands for a CUDA graph where there is no GPU: captured, the step leaves no trace; replayed, it runs."""

    def replay(self):
        self.step()


def test_capture_leaves_no_trace_and_is_replayed_for_each_size_of_batch(monkeypatch):
    cfg, model = _network(BIASED, 'depth=11')
    _, twin = _network(BIASED, 'depth=11')
    eager, captured = (Trainer(network, cfg, read_recipe(cfg)) for network in (model, twin))
    captured._eager = False

    @contextmanager
    def capture(graph, stream):
        captured._step = lambda *batch: setattr(graph, 'step', partial(Trainer._step, captured, *batch))
        yield
        del captured._step

    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: None)
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', _Graph)
    monkeypatch.setattr(torch.cuda, 'graph', capture)
    for trainer in (eager, captured):
        for seed, (count, lr) in enumerate(BATCHES):
            trainer.set_lr(lr)
            trainer.step(*_pictures(count, seed))
    assert set(captured._captured) == {16, 7}
    assert torch.equal(captured.loss_sum, eager.loss_sum)
    pairs = (captured.momentum(), eager.momentum()), (captured.model.state_dict(), eager.model.state_dict())
    for ours, theirs in pairs:
        assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_loss_compiles_whole_and_is_the_same_for_each_network_of_a_kind(precision):
    torch._dynamo.reset()
    for seed in range(2):
        cfg, model = _network(BIASED, 'depth=11', seed)
        trainer = Trainer(model, cfg, read_recipe(cfg), precision=precision)
        loss_of = torch.compile(trainer._loss, dynamic=False, fullgraph=True, backend='eager')
        assert loss_of(*_pictures(8)).item() == pytest.approx(trainer._loss(*_pictures(8)).item(), rel=1e-5)


def test_bf16_is_within_the_step_alone():
    losses = []
    for precision in ('fp32', 'bf16'):
        cfg, model = _network(BIASED, 'depth=11')
        trainer = Trainer(model, cfg, read_recipe(cfg), precision=precision)
        trainer.step(*_pictures(8))
        losses.append(trainer.loss_sum.item())
        kept = [*model.parameters(), *trainer.momentum().values(), *model.buffers(), trainer.loss_sum]
        assert {value.dtype for value in kept if value.is_floating_point()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@needs_gpu
@pytest.mark.parametrize('mode', ['graph', 'compile'])
def test_captured_step_is_the_eager_one(mode):
    trainers = []
    for kind in ('eager', mode):
        cfg, model = _network(BIASED, 'depth=11')
        trainer = Trainer(model.cuda(), cfg, read_recipe(cfg), mode=kind)
        with torch.cuda.stream(trainer.stream):
            for step, (count, lr) in enumerate(BATCHES):
                images, labels = (part.cuda() for part in _pictures(count, step))
                trainer.set_lr(lr)
                trainer.step(images, labels)
        torch.cuda.synchronize()
        trainers.append(trainer)
    eager, captured = (trainer.model.cpu().state_dict() for trainer in trainers)
    start = _network(BIASED, 'depth=11')[1].state_dict()
    assert eager['backbone.bn1.num_batches_tracked'] == captured['backbone.bn1.num_batches_tracked'] == 4
    assert _distance(captured, eager) <= 0.02 * _distance(eager, start)
    assert trainers[1].loss_sum.item() == pytest.approx(trainers[0].loss_sum.item(), rel=1e-2)


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
