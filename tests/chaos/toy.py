"""A training of milliseconds, built as a user builds one in a script, without the launcher."""

import itertools
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from mmsb.engine import SafeRunner

_numbers = itertools.count()


class Toy(BaseModel):
    """A network with weights, buffers and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 1), nn.BatchNorm1d(1))

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        if isinstance(inputs, list):
            inputs = torch.stack(inputs)
        out = self.layers(inputs)
        return dict(loss=(out**2).mean() + 0.01 * out.sum()) if mode == 'loss' else [out.detach()]


class Score(BaseMetric):
    default_prefix = 'toy'

    def process(self, data_batch, data_samples) -> None:
        self.results.append(float(sum(sample.sum() for sample in data_samples)))

    def compute_metrics(self, results: list) -> dict:
        return dict(acc=sum(results))


class Numbers(Dataset):
    """Twelve samples with noise that is drawn as they are loaded."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.rand(2) + index)


FIXED = [dict(inputs=torch.tensor([n, n / 2.0])) for n in range(12)]  # for validations


def loader_of(dataset=None, **options) -> dict:
    """Return the config of a dataloader with three batches."""
    sampler = dict(type='DefaultSampler', shuffle=True)
    return {**dict(dataset=dataset or Numbers(), sampler=sampler, batch_size=4, num_workers=0), **options}


def runner(work_dir: Path, kind=SafeRunner, *, data=None, by_epoch: bool = True, hooks=(), saving=None, **options):
    """Build a runner of 3 epochs or 9 iterations, with a step of the schedules after each iteration and epoch.

    Args:
        work_dir: the work dir.
        kind: class of the runner.
        data: the training data; by default shuffled `Numbers`.
        by_epoch: which loop.
        hooks: custom hooks.
        saving: options of the checkpoint hook; by default it saves nothing.
        options: other arguments of the runner.
    """
    loop = dict(type='mmsb.EpochBasedTrainLoop', max_epochs=3)
    if not by_epoch:
        loop = dict(type='mmsb.IterBasedTrainLoop', max_iters=9, val_interval=3)
    parts = dict(
        model=Toy(),
        train_dataloader=loader_of() if data is None else data,
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=8),
            dict(type='StepLR', step_size=1, gamma=0.5),
        ],
        val_dataloader=loader_of(FIXED),
        val_cfg=dict(),
        val_evaluator=[Score()],
        test_dataloader=loader_of(FIXED),
        test_cfg=dict(),
        test_evaluator=[Score()],
        default_hooks=dict(
            logger=dict(type='mmsb.LoggerHook', interval=1),
            checkpoint=dict(type='mmsb.CheckpointHook', **(dict(save_last=False) if saving is None else saving)),
        ),
        custom_hooks=[dict(type='mmsb.GuardHook', signals=()), *hooks],
        randomness=dict(seed=3),
        log_level='WARNING',
        experiment_name=f'toy_{next(_numbers)}',
    )
    return kind(work_dir=str(work_dir), **{**parts, **options})


def end_of(run) -> dict[str, torch.Tensor]:
    """Train; return weights, averages and the optimizer's state at the end."""
    run.train()
    tensors = {f'weights.{name}': value.clone() for name, value in run.model.state_dict().items()}
    for hook in run.hooks:
        if isinstance(hook, EMAHook):
            tensors.update({f'averages.{name}': value.clone() for name, value in hook.ema_model.state_dict().items()})
    for index, state in run.optim_wrapper.state_dict()['state'].items():
        tensors.update({f'optimizer.{index}.{name}': value.clone() for name, value in state.items()})
    return tensors
