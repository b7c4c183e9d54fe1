"""Batches that depend only on the seed and on their position in the training.

They do not depend on the number of workers, on whether workers persist, or on where a run was interrupted. Each sample
is loaded with generators seeded by (seed, process, epoch, batch, position in the batch). The generators of the training
loop are left untouched.
"""

import contextlib
import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mmengine.dist import get_rank
from torch.utils.data import DataLoader, IterableDataset

from mmsb.configs import LIBRARIES
from mmsb.datasets.loading import load_sample

from . import rng

_SAMPLES, _SAMPLER = 0, 1  # first number of a key: what it seeds
_WORKER_GRACE_S = 20
_WITHOUT_MEMORY = ('torch', 'mmengine', 'mmsb', *LIBRARIES)  # packages whose samplers have none
NO_BATCH = 'train_dataloader yields no batch: its dataset is empty or smaller than one batch'


class Batch(list):
    """The indices of a batch, with the key that seeds its samples."""

    key: tuple[int, ...]


class _Items:
    """Loads the samples of a batch, and names the files of one that fails; serves as a dataset's `__getitems__`, which
    torch's fetcher prefers. A dataset that has one itself loads the batch, seeded as a whole.
    """

    def __init__(self, dataset) -> None:
        self._dataset = dataset
        self._whole = getattr(type(dataset), '__getitems__', None)

    def __call__(self, batch) -> list:
        key = getattr(batch, 'key', None)
        if self._whole is not None:
            with rng.untouched() if key else contextlib.nullcontext():
                if key:
                    rng.seed_by(*key)
                return self._whole(self._dataset, list(batch))
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
        self._epoch: int | None = None  # of the latest pass
        self._passed = 0  # passes that a sampler with a memory has made
        self.drawn: deque[tuple[int, int, list]] = deque(maxlen=1024)

    def __len__(self) -> int:
        return len(self._batches)

    def go_to(self, epoch: int, batch: int) -> None:
        self._at, self._epoch = (epoch, batch), epoch

    def __iter__(self) -> Iterator[Batch]:
        if self._epoch is None:  # stock mmengine starts loading as it builds its loop
            return
        epoch, first = self._at or (self._epoch, 0)  # without: a hook looks at the data by itself
        self._at = None
        if _has_memory(self._batches):
            self._repeat_passes(epoch)
        for number, indices in _draw(self._batches, self._seed, epoch, first):
            batch = Batch(indices)
            batch.key = (_SAMPLES, self._seed, get_rank(), epoch, number)
            self.drawn.append((epoch, number, list(indices)))
            yield batch

    def _repeat_passes(self, epoch: int) -> None:
        """Draw the indices of the passes before this one, which an earlier process made, and this one not."""
        sampler = getattr(self._batches, 'sampler', None)
        for number in range(self._passed, epoch):
            _set_epoch(sampler, number)
            with rng.Stream(_SAMPLER, self._seed, number):
                deque(self._batches, maxlen=0)
            _set_epoch(sampler, epoch)
        self._passed = epoch + 1


def _draw(batches: Iterable, seed: int, epoch: int, first: int) -> Iterator[tuple[int, Any]]:
    """Draw the batches of a pass with random generators of their own; yield number and content from `first` on."""
    stream = rng.Stream(_SAMPLER, seed, epoch)
    with stream:
        batches = iter(batches)
    for number in itertools.count():
        with stream:
            try:
                batch = next(batches)
            except StopIteration:
                return
        if number >= first:
            yield number, batch


def _has_memory(sampler) -> bool:
    """Return whether the order of a sampler may depend on its earlier passes; not so those of the libraries."""
    while sampler is not None:
        known = type(sampler).__module__.split('.')[0] in _WITHOUT_MEMORY
        if not known or getattr(sampler, 'generator', None) is not None:
            return True
        sampler = getattr(sampler, 'sampler', None)
    return False


class ExactDataLoader(DataLoader):
    """A DataLoader that can start at any batch of any epoch; `exact_batches` turns another one into it."""

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


class RepeatedBatches:
    """The batches of a loader that always starts at its beginning: those before the first one are loaded and dropped.

    Args:
        loader: an iterable.
        seed: seeds, with the epoch, what the loader draws in this process.
    """

    def __init__(self, loader: Iterable, seed: int) -> None:
        self._loader, self._seed = loader, seed
        self._at = (0, 0)

    def go_to(self, epoch: int, batch: int) -> None:
        """See `ExactDataLoader.go_to`."""
        self._at = (epoch, batch)

    def __iter__(self) -> Iterator:
        epoch, first = self._at
        yield from (batch for _, batch in _draw(self._loader, self._seed, epoch, first))


def exact_batches(loader: Iterable, seed: int) -> ExactDataLoader | RepeatedBatches:
    """Return the batches of a loader such that a pass over them can start anywhere.

    A map-style DataLoader is turned into an exact one, in place, because its arguments can't be read back, and because
    whatever already refers to it (a sampler, a hook that switches `dataset.pipeline`) must keep the same object.
    """
    if not (isinstance(loader, DataLoader) and loader.batch_sampler is not None and _is_seedable(name_samples(loader))):
        return RepeatedBatches(loader, seed)
    kind = type(loader)
    if not issubclass(kind, ExactDataLoader):
        loader.__class__ = ExactDataLoader if kind is DataLoader else type(kind.__name__, (ExactDataLoader, kind), {})
    loader._plan = _Plan(loader.batch_sampler, seed)
    loader._iterator = None  # persistent workers of an earlier run have its plan
    loader.generator = None  # each iterator would draw from it, and it may be the sampler's
    return loader


def name_samples(loader: DataLoader) -> DataLoader:
    """Make the errors of a map-style DataLoader name the files of the sample, in place."""
    dataset = loader.dataset
    if not isinstance(dataset, IterableDataset) and not _has_items(dataset):
        with contextlib.suppress(AttributeError, TypeError):  # a list, or an object with slots
            dataset.__getitems__ = _Items(dataset)
    return loader


def _is_seedable(loader: DataLoader) -> bool:
    """Return whether the samples of a loader are seeded by their position, or need not be."""
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        return False
    return _has_items(dataset) or loader.num_workers == 0 or type(dataset).__module__ == 'builtins'


def _has_items(dataset) -> bool:
    return isinstance(getattr(dataset, '__dict__', {}).get('__getitems__'), _Items)


class EndlessBatches:
    """The batches of an iteration-based training; starts the next pass over the data when one ends.

    Args:
        loader: the dataloader.
        batches: its batches, by `exact_batches`.
    """

    def __init__(self, loader: Iterable, batches: ExactDataLoader | RepeatedBatches) -> None:
        self._loader, self._passes = loader, batches
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
                    _set_epoch(getattr(self._loader, 'sampler', None), self.epoch)
                    _set_epoch(getattr(getattr(self._loader, 'batch_sampler', None), 'sampler', None), self.epoch)
                self._passes.go_to(self.epoch, self.batch)
                self._batches = iter(self._passes)
            try:
                data = next(self._batches)
            except StopIteration:
                self._batches = None
                self.epoch, self.batch = self.epoch + 1, 0
                continue
            self.batch += 1
            return data
        raise ValueError(NO_BATCH)


def length_of(loader: Iterable) -> int | None:
    """Return the number of batches of a pass; None if it is unknown before its end."""
    try:
        return len(loader)
    except TypeError:
        return None


def _set_epoch(sampler, epoch: int) -> None:
    """Tell a sampler, if it wants to know, which pass over the data comes next."""
    if hasattr(sampler, 'set_epoch'):
        sampler.set_epoch(epoch)
