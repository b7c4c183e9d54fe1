"""The dataloaders of a rehearsal: quick to read, and how many samples their batches have in each process."""

import copy
import inspect
import itertools
import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, IterableDataset

from mmsb.datasets.paths import annotation_file, leaf_datasets

from ..processes import world_size
from .sections import Section
from .signatures import Options

_LOADER = inspect.signature(DataLoader.__init__).parameters
LOADER_OPTIONS = Options(  # those that the runner takes out, and PyTorch's
    {
        key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY)
        for key in (*list(_LOADER)[1:], 'num_batch_per_epoch', 'disable_subprocess_warning')
    },
    closed=True,
)
LARGE_BYTES = 50e6  # of an annotation file; that of COCO's training takes half a minute and 3 GB
ONE_VALUE = 'Expected more than 1 value per channel when training'  # says PyTorch's batch norm


def quick_to_read(cfg: Section, key: str) -> tuple[Section, bool]:
    """Copy a section, but spare a dataset its large annotation file if the validation has a smaller one.

    Returns:
        the copy, and whether it has another file.
    """
    section, shortened = copy.deepcopy(cfg[key]), False
    smaller = leaf_datasets((cfg.get('val_dataloader') or {}).get('dataset') or {}, '')
    smaller = {one.get('type'): one for _, one in smaller if not _is_large(one)}
    for _, leaf in leaf_datasets(section.get('dataset') or {}, ''):
        other = smaller.get(leaf.get('type')) if _is_large(leaf) else None
        if other is not None:
            leaf.update({key: other[key] for key in ('data_root', 'ann_file', 'data_prefix') if key in other})
            shortened = True
    return section, shortened


def _is_large(dataset: Section) -> bool:
    path = annotation_file(dataset)
    return path is not None and os.path.isfile(path) and os.path.getsize(path) > LARGE_BYTES


def batch_sizes(loader: DataLoader, build: Callable[[], DataLoader]) -> list[int] | None:
    """List the sizes of the batches of a pass in one process, or None if they can not be known.

    It is a process without batches if there is one, or else with a batch of one sample.

    Args:
        loader: the loader in a run of one process.
        build: builds the loader of another process, over the same dataset.
    """
    processes = world_size()
    loaders = [loader]
    if processes > 1 and not isinstance(loader.dataset, IterableDataset):
        loaders = []
        for rank in (0, processes - 1):  # samplers give one sample more to the first ones, or the same number to all
            with _as_process(rank):
                loaders.append(build())
    found = [_sizes(one) for one in loaders]
    return None if None in found else next((sizes for sizes in found if not sizes or 1 in sizes), found[0])


def _sizes(loader: DataLoader) -> list[int] | None:
    try:
        count = len(loader)
    except TypeError:
        return None
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None if count else []
    return [len(batch) for batch in itertools.islice(loader.batch_sampler, max(count, 1))]  # a sampler may be endless


def _as_process(rank: int) -> AbstractContextManager:
    """Let what is built, such as a sampler, see the run's processes, without communication between them."""
    silent = dict.fromkeys(('broadcast', 'broadcast_object_list'), lambda *_, **__: None)
    return patch.multiple(torch.distributed, is_initialized=lambda: True, get_rank=lambda *_: rank, **silent)


def norm_of_one_value(error: Exception, model: nn.Module, *, sync_bn: bool) -> str | None:
    """Return the name of the batch norm that has failed because a batch gave it one value per channel, if this is why.

    One that is computed over several processes does not fail in the run: its name is empty.

    Args:
        error: what was raised.
        model: the network.
        sync_bn: whether the run makes all batch norms such ones.
    """
    if ONE_VALUE not in str(error):
        return None
    names = {id(module): name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    owners = [frame.f_locals.get('self') for frame, _ in traceback.walk_tb(error.__traceback__)]
    norm = next((owner for owner in reversed(owners) if id(owner) in names), None)
    synced = world_size() > 1 and (sync_bn or 'SyncB' in type(norm).__name__)
    return '' if synced else names.get(id(norm), 'a batch norm')


def no_batches(key: str, loader: DataLoader) -> str:
    """Return the error for a loader whose passes have no batches."""
    return (
        f'{key}: a pass over the data has no batches ({_counts(loader)}): set drop_last=False or a smaller batch_size'
    )


def one_value(key: str, loader: DataLoader, sizes: list[int] | None, norm: str) -> str:
    """Return the error for a batch norm that gets one value per channel from a batch of one sample."""
    which, cure = 'every batch', 'a larger batch_size'
    if sizes and max(sizes) > 1:
        which, cure = 'a batch', 'drop_last=True or another batch_size'
        if sizes.index(1) == len(sizes) - 1:
            which = 'the last batch'
    return (
        f'{key}: {which} of an epoch has one sample ({_counts(loader)}), and batch norm {norm!r} needs more than one '
        f'value per channel to train: set {cure}'
    )


def _counts(loader: DataLoader) -> str:
    size = getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
    processes = f', {world_size()} processes' if world_size() > 1 else ''
    return f'{len(loader.dataset)} samples, batch_size={size}{processes}'
