"""A training step matches MMPretrain's: eager, in bf16, compiled, and captured as a graph."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.runner import set_random_seed
from mmpretrain.structures import DataSample

from benchmarks.cifar100.trainer import Trainer
from mmsb.analysis import zoo
from mmsb.configs import build_model

PLAIN, BIASED = (f'cifar100/{name}_b64-300e_cifar100.py' for name in ('resnet38', 'sb-resnet38'))


def _network(config: str, options: str = '', seed: int = 0):
    cfg = zoo.load(config, options)
    set_random_seed(seed)
    model = build_model(cfg)
    model.init_weights()
    return cfg, model


def _distance(first: dict, second: dict) -> float:
    """Measure the distance between two networks' parameters."""
    keys = [key for key in first if key.endswith(('.weight', '.bias'))]
    return sum((first[key] - second[key]).double().square().sum().item() for key in keys) ** 0.5


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('config', [PLAIN, BIASED])
def test_step_is_mmpretrains(config, channels_last, pictures):
    cfg, model = _network(config)
    _, twin = _network(config)
    trainer = Trainer(twin, cfg, channels_last=channels_last)
    trainer.start_epoch(cfg.optim_wrapper.optimizer.lr)
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


def test_network_that_draws_random_numbers_is_refused():
    cfg, model = _network(BIASED, 'depth=11; drop_path_rate=0.1')
    with pytest.raises(ValueError, match='random numbers'):
        Trainer(model, cfg)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_loss_compiles_as_one_graph_for_each_network_of_a_kind(precision, pictures):
    torch._dynamo.reset()
    for seed in range(2):
        cfg, model = _network(BIASED, 'depth=11', seed)
        trainer = Trainer(model, cfg, precision=precision)
        compiled = torch.compile(trainer.loss, dynamic=False, fullgraph=True, backend='eager')
        assert compiled(*pictures(8)).item() == pytest.approx(trainer.loss(*pictures(8)).item(), rel=1e-5)


def test_bf16_stays_within_the_step(pictures):
    losses = []
    for precision in ('fp32', 'bf16'):
        cfg, model = _network(BIASED, 'depth=11')
        trainer = Trainer(model, cfg, precision=precision)
        trainer.step(*pictures(8))
        losses.append(trainer.loss_sum.item())
        kept = [*model.parameters(), *trainer.momentum().values(), *model.buffers(), trainer.loss_sum]
        assert {value.dtype for value in kept if value.is_floating_point()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize('mode', ['graph', 'compile'])
def test_captured_step_is_the_eager_one(mode, pictures):
    trainers = []
    for kind in ('eager', mode):
        cfg, model = _network(BIASED, 'depth=11')
        trainer = Trainer(model.cuda(), cfg, mode=kind)
        losses = []
        with trainer.on_stream():
            for step, (count, lr) in enumerate([(16, 0.1), (16, 0.1), (7, 0.01), (16, 0.01)]):
                images, labels = (part.cuda() for part in pictures(count, step))
                trainer.start_epoch(lr)
                trainer.step(images, labels)
                losses.append(trainer.loss_sum.item())
        trainers.append((trainer.model.cpu().state_dict(), losses))
    (eager, eager_losses), (captured, captured_losses) = trainers
    start = _network(BIASED, 'depth=11')[1].state_dict()
    assert eager['backbone.bn1.num_batches_tracked'] == captured['backbone.bn1.num_batches_tracked'] == 4
    assert _distance(captured, eager) <= 0.02 * _distance(eager, start)
    assert captured_losses == pytest.approx(eager_losses, rel=1e-2)
