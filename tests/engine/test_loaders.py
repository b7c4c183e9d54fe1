"""Loops take any loader that MMEngine's take, and go on in the middle of its data."""

import random

import numpy as np
import pytest
import torch
from chaos.toy import Numbers, end_of, loader_of, runner
from chaos.victim import differing
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, Subset

STOP_AT = 5  # iterations: in the middle of the second pass
REPEATED = 'can only be read from its start: a resumed run reads the batches of its epoch again'


class Own(Sampler):
    """Another order in each pass, from generators of its own."""

    def __init__(self) -> None:
        self._torch, self._numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)

    def __len__(self) -> int:
        return 12

    def __iter__(self):
        order = torch.randperm(12, generator=self._torch).tolist()
        yield from self._numpy.permutation(order).tolist()


class Wholes(Numbers):
    """Loads a batch at once."""

    def __getitems__(self, indices: list) -> list:
        return [dict(inputs=row) for row in torch.rand(len(indices), 2) + torch.tensor(indices)[:, None]]


class Slots:
    """A dataset that takes no attributes."""

    __slots__ = ()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.rand(2) + index)


@DATASETS.register_module()
class Stream(IterableDataset):
    """Shuffled by Python's generator; each worker has its share."""

    def __len__(self) -> int:
        return 12

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        order = list(range(first, 12, step))
        random.shuffle(order)
        for number in order:
            yield dict(inputs=torch.rand(2) + number)


class Mine(DataLoader):
    """A loader of one's own."""


class Plain:
    """An iterable that is no DataLoader."""

    dataset = Numbers()

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        for first in (0, 4, 8):
            yield dict(inputs=torch.rand(4, 2) + torch.arange(first, first + 4.0)[:, None])


EXACT = {
    'config': lambda **how: loader_of(**how),
    'object': lambda **how: DataLoader(Numbers(), 4, shuffle=True, **how),
    'generator': lambda **how: DataLoader(
        Numbers(), 4, shuffle=True, generator=torch.Generator().manual_seed(5), **how
    ),
    'batch sampler': lambda **how: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(range(12)), 4, False), **how
    ),
    'own sampler': lambda **how: DataLoader(Numbers(), 4, sampler=Own(), **how),
    'whole batches': lambda **how: DataLoader(Wholes(), 4, shuffle=True, **how),
    'subset': lambda **how: DataLoader(Subset(Numbers(), range(12)), 4, shuffle=True, **how),
    'list': lambda **how: DataLoader(
        [dict(inputs=torch.tensor([n, n / 2.0])) for n in range(12)], 4, shuffle=True, **how
    ),
    'subclass': lambda **how: Mine(Numbers(), 4, shuffle=True, **how),
}
REPEATING = {
    'slots': lambda **how: DataLoader(Slots(), 4, shuffle=True, **how),
    'stream': lambda **how: DataLoader(Stream(), 4, **how),
    'config of a stream': lambda **how: loader_of(dict(type='Stream'), sampler=None, **how),
    'plain': lambda **how: Plain(),
}
CASES = [
    *((kind, by_epoch, {}) for kind in (*EXACT, *REPEATING) for by_epoch in (True, False)),
    *((kind, True, dict(num_workers=2)) for kind in ('generator', 'own sampler', 'list', 'slots', 'stream')),
]
NO_VALIDATION = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)


class Seen(Hook):
    """Notes the numbers of the samples; saves after some iterations."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def after_train_iter(self, run, batch_idx, data_batch=None, outputs=None) -> None:
        inputs = data_batch['inputs']
        self.numbers += (torch.stack(inputs) if isinstance(inputs, list) else inputs)[:, 0].int().tolist()
        if len(self.numbers) == 4 * STOP_AT:
            run.save_checkpoint(run.work_dir, 'stop.pth')


@pytest.mark.parametrize(('kind', 'by_epoch', 'workers'), CASES)
def test_any_loader_goes_on_where_it_was(tmp_path, kind, by_epoch, workers):
    make = {**EXACT, **REPEATING}[kind]
    seen, rest = Seen(), Seen()
    options = dict(by_epoch=by_epoch, **NO_VALIDATION)
    torch.manual_seed(7)
    whole = end_of(runner(tmp_path / 'whole', data=make(**workers), hooks=[seen], **options))
    for first in (0, 12, 24):
        assert sorted(seen.numbers[first : first + 12]) == list(range(12))
    torch.manual_seed(8)
    stop = dict(load_from=str(tmp_path / 'whole/stop.pth'), resume=True)
    resumed = end_of(runner(tmp_path / 'resumed', data=make(**workers), hooks=[rest], **stop, **options))
    assert differing(resumed, whole) == []
    assert rest.numbers == seen.numbers[4 * STOP_AT :]
    (log,) = (tmp_path / 'whole').glob('*/*.log')
    assert (REPEATED in log.read_text()) == (kind in REPEATING and not (kind == 'slots' and not workers))


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
@pytest.mark.parametrize('kind', ['config', 'object', 'stream'])
def test_our_loops_train_and_resume_under_the_stock_runner_too(tmp_path, kind, by_epoch):
    make = {**EXACT, **REPEATING}[kind]
    seen, rest = Seen(), Seen()
    saving = dict(interval=1 if by_epoch else 3, by_epoch=by_epoch)
    options = dict(by_epoch=by_epoch, saving=saving, **NO_VALIDATION)
    runner(tmp_path / 'run', Runner, data=make(), hooks=[seen], **options).train()
    path = str(tmp_path / 'run' / ('epoch_1.pth' if by_epoch else 'iter_3.pth'))
    runner(tmp_path / 'resumed', Runner, data=make(), hooks=[rest], load_from=path, resume=True, **options).train()
    assert len(rest.numbers) == 24
    assert rest.numbers == seen.numbers[12:]


class Looks(Hook):
    """Reads the training data by itself, as hooks do that make batch norms precise."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def _look(self, run) -> None:
        self.counts.append(len(list(run.train_dataloader)))

    before_train = after_train_epoch = after_train = _look


def test_a_hook_may_read_the_training_data(tmp_path):
    looks = Looks()
    quiet = end_of(runner(tmp_path / 'quiet'))
    assert differing(end_of(runner(tmp_path / 'looked', hooks=[looks])), quiet) == []
    assert looks.counts == [3] * 5
