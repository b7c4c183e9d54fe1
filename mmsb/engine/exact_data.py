"""Batches that depend only on the seed and on their position in the training.

They do not depend on the number of workers, on whether workers persist, or on where a run was interrupted. Each sample
is loaded with generators seeded by (seed, process, epoch, batch, position in the batch). The generators of the training
loop are left untouched.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from mmengine.dist import get_rank
from torch.utils.data import DataLoader, IterableDataset

from mmsb.datasets.loading import load_sample

from . import rng

_SAMPLES, _SAMPLER = 0, 1  # first number of a key: what it seeds
_WORKER_GRACE_S = 20
NO_BATCH = 'train_dataloader yields no batch: its dataset is empty or smaller than one batch'


class Batch(list):
    """The indices of a batch, with the key that seeds its samples."""

    key: tuple[int, ...]


class _Items:
    """Loads the samples of a batch, and names the files of one that fails; serves as a dataset's `__getitems__`, which
    torch's fetcher prefers.
    """

    def __init__(self, dataset) -> None:
        self._dataset = dataset

    def __call__(self, batch) -> list:
        key = getattr(batch, 'key', None)
        if key is None:
            return [load_sample(self._dataset, index) for index in batch]
        samples = []
        with rng.untouched():
            for place, index in enumerate(batch):
                rng.seed_by(*key, place)
                samples.append(load_sample(self._dataset, index))
        return samples


class PatientWorker:
    """Initialises a worker so that it outlives, for a while, a signal that the training process also receives.

    A scheduler signals every process of a job. A training or validation worker that died at once would bring the
    training down before its iteration is finished and saved. When the training process itself ends the worker, the
    worker exits at once.

    Args:
        start: the worker's original `worker_init_fn`, called with the number of the worker.
    """

    def __init__(self, start: Callable[[int], None] | None) -> None:
        self._start = start

    def __call__(self, worker: int) -> None:
        if self._start is not None:
            self._start(worker)
        if hasattr(signal, 'sigtimedwait'):  # Linux only
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_in_time, args=(os.getppid(),), daemon=True).start()


def _end_in_time(training: int) -> None:
    """Exit on a SIGTERM from the training process (given by its id), or some time after one from another process."""
    seconds = threading.TIMEOUT_MAX
    while True:
        got = signal.sigtimedwait({signal.SIGTERM}, seconds)
        if got is None or got.si_pid == training:
            os._exit(0)
        seconds = _WORKER_GRACE_S


class _Plan:
    """The batches of indices of one pass over the data, starting at any batch."""

    def __init__(self, batches: Iterable, seed: int) -> None:
        self._batches, self._seed = batches, seed
        self._at: tuple[int, int] | None = None
        self.drawn: deque[tuple[int, int, list]] = deque(maxlen=1024)

    def __len__(self) -> int:
        return len(self._batches)

    def go_to(self, epoch: int, batch: int) -> None:
        self._at = (epoch, batch)

    def __iter__(self) -> Iterator[Batch]:
        if self._at is None:  # stock mmengine starts loading as it builds its loop, before the run knows its position
            return
        (epoch, first), self._at = self._at, None
        stream = rng.Stream(_SAMPLER, self._seed, epoch)
        with stream:
            batches = iter(self._batches)
        number = 0
        while True:
            with stream:
                indices = next(batches, None)
            if indices is None:
                return
            if number >= first:
                batch = Batch(indices)
                batch.key = (_SAMPLES, self._seed, get_rank(), epoch, number)
                self.drawn.append((epoch, number, list(indices)))
                yield batch
            number += 1


class ExactDataLoader(DataLoader):
    """A DataLoader that can start at any batch of any epoch; `make_exact` turns a stock one into it."""

    _plan: _Plan

    @property
    def _index_sampler(self) -> _Plan:
        return self._plan

    def go_to(self, epoch: int, batch: int) -> None:
        """Set where the next pass over the data begins.

        Args:
            epoch: index of the pass, from 0.
            batch: index of its first batch, from 0.
        """
        self._plan.go_to(epoch, batch)

    def indices(self, epoch: int, batch: int) -> list | None:
        """Return the indices of a recently loaded batch, or None if it is unknown."""
        return next((indices for e, b, indices in self._plan.drawn if (e, b) == (epoch, batch)), None)

    def __iter__(self):
        with rng.untouched():  # creating an iterator draws a seed for its workers
            return super().__iter__()


def make_exact(loader: DataLoader, seed: int) -> DataLoader:
    """Turn a map-style DataLoader into an exact one, in place; other loaders are left unchanged.

    It happens in place because the loader's arguments can't be read back, and because whatever already refers to it (a
    sampler, a hook that switches `dataset.pipeline`) must keep the same object.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return loader
    if not isinstance(loader, ExactDataLoader):
        loader._plan = _Plan(loader.batch_sampler, seed)
        loader.dataset.__getitems__ = _Items(loader.dataset)
        loader.__class__ = ExactDataLoader
    return loader


def name_samples(loader: DataLoader) -> DataLoader:
    """Make the errors of a map-style DataLoader name the files of the sample, in place."""
    dataset = loader.dataset
    if not isinstance(dataset, IterableDataset) and not hasattr(dataset, '__getitems__'):
        dataset.__getitems__ = _Items(dataset)
    return loader


class EndlessBatches:
    """The batches of an iteration-based training; starts the next pass over the data when one ends.

    Args:
        loader: the exact dataloader that supplies the batches.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self._batches: Iterator | None = None
        self.epoch = 0  # completed passes
        self.batch = 0  # batches of this pass returned so far

    def go_to(self, epoch: int, batch: int) -> None:
        """Set the next batch; call it before the first batch is requested."""
        assert self._batches is None
        self.epoch, self.batch = epoch, batch

    def __iter__(self):
        return self

    def __next__(self):
        for _ in range(2):
            if self._batches is None:
                if self.epoch:
                    set_epoch(self._loader, self.epoch)
                self._loader.go_to(self.epoch, self.batch)
                self._batches = iter(self._loader)
            try:
                data = next(self._batches)
            except StopIteration:
                self._batches = None
                self.epoch, self.batch = self.epoch + 1, 0
                continue
            self.batch += 1
            return data
        raise ValueError(NO_BATCH)


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the sampler of a loader which pass over the data comes next."""
    for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
            return
