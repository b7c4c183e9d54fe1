"""The step is the project's own: eager, in bf16, compiled, captured."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.runner import set_random_seed
from mmpretrain.structures import DataSample

from mmsb.analysis import zoo
from mmsb.configs import build_model
from mmsb.fast.recipe import read_recipe
from mmsb.fast.trainer import Trainer

PLAIN, BIASED = (f'cifar100/{name}_b64-300e_cifar100.py' for name in ('resnet38', 'sb-resnet38'))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='a CUDA graph needs a GPU')


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


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('config', [PLAIN, BIASED])
def test_step_is_the_projects_own(config, channels_last, pictures):
    cfg, model = _network(config)
    _, twin = _network(config)
    trainer = Trainer(twin, cfg, read_recipe(cfg), channels_last=channels_last)
    trainer.set_lr(cfg.optim_wrapper.optimizer.lr)
    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    total = 0.0
    for seed in range(3):
        images, labels = pictures(8, seed)
        samples = [DataSample().set_gt_label(label) for label in labels]
        total += 8 * model.train_step(dict(inputs=images, data_samples=samples), wrapper)['loss'].item()
        trainer.step(images, labels)
    assert trainer.loss_sum.item() == pytest.approx(total, rel=1e-4)
    ours, theirs = twin.state_dict(), model.state_dict()
    if not channels_last:
        assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert _distance(ours, theirs) <= 1e-3 * _distance(theirs, _network(config)[1].state_dict())


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


def test_capture_leaves_no_trace_and_is_replayed_for_each_size_of_batch(monkeypatch, pictures):
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
        for seed, (size, lr) in enumerate(BATCHES):
            trainer.set_lr(lr)
            trainer.step(*pictures(size, seed))
    assert set(captured._captured) == {16, 7}
    assert torch.equal(captured.loss_sum, eager.loss_sum)
    pairs = (captured.momentum(), eager.momentum()), (captured.model.state_dict(), eager.model.state_dict())
    for ours, theirs in pairs:
        assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_loss_compiles_whole_and_is_the_same_for_each_network_of_a_kind(precision, pictures):
    torch._dynamo.reset()
    for seed in range(2):
        cfg, model = _network(BIASED, 'depth=11', seed)
        trainer = Trainer(model, cfg, read_recipe(cfg), precision=precision)
        loss_of = torch.compile(trainer._loss, dynamic=False, fullgraph=True, backend='eager')
        assert loss_of(*pictures(8)).item() == pytest.approx(trainer._loss(*pictures(8)).item(), rel=1e-5)


def test_bf16_is_within_the_step_alone(pictures):
    losses = []
    for precision in ('fp32', 'bf16'):
        cfg, model = _network(BIASED, 'depth=11')
        trainer = Trainer(model, cfg, read_recipe(cfg), precision=precision)
        trainer.step(*pictures(8))
        losses.append(trainer.loss_sum.item())
        kept = [*model.parameters(), *trainer.momentum().values(), *model.buffers(), trainer.loss_sum]
        assert {value.dtype for value in kept if value.is_floating_point()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@needs_gpu
@pytest.mark.parametrize('mode', ['graph', 'compile'])
def test_captured_step_is_the_eager_one(mode, pictures):
    trainers = []
    for kind in ('eager', mode):
        cfg, model = _network(BIASED, 'depth=11')
        trainer = Trainer(model.cuda(), cfg, read_recipe(cfg), mode=kind)
        with torch.cuda.stream(trainer.stream):
            for step, (count, lr) in enumerate(BATCHES):
                images, labels = (part.cuda() for part in pictures(count, step))
                trainer.set_lr(lr)
                trainer.step(images, labels)
        torch.cuda.synchronize()
        trainers.append(trainer)
    eager, captured = (trainer.model.cpu().state_dict() for trainer in trainers)
    start = _network(BIASED, 'depth=11')[1].state_dict()
    assert eager['backbone.bn1.num_batches_tracked'] == captured['backbone.bn1.num_batches_tracked'] == 4
    assert _distance(captured, eager) <= 0.02 * _distance(eager, start)
    assert trainers[1].loss_sum.item() == pytest.approx(trainers[0].loss_sum.item(), rel=1e-2)
