"""Find missing folders and annotation files of a config before a run, not in the middle of it."""

import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
DATA_HELP = {
    'data/coco': 'put COCO 2017 there: annotations/, train2017/, val2017/',
    'data/demo': 'create it with `python -m mmsb.datasets.digits`',
    'data/ade': 'put ADEChallengeData2016 there: images/, annotations/',
    'data/cifar100': 'put cifar-100-python there; an empty folder makes the run download it',
}


def leaf_datasets(dataset: dict, key: str) -> Iterator[tuple[str, dict]]:
    """Yield the config of a dataset, or of the datasets that it wraps, each with its key in the full config."""
    inner = {f'{key}.datasets.{i}': child for i, child in enumerate(dataset.get('datasets') or [])}
    if dataset.get('dataset'):
        inner[f'{key}.dataset'] = dataset['dataset']
    for name, child in inner.items():
        yield from leaf_datasets(child, name)
    if not inner:
        yield key, dataset


def built_leaves(dataset: object) -> Iterator[object]:
    """Yield a dataset, or the datasets that it wraps, in the order of `leaf_datasets`."""
    inner = [*(getattr(dataset, 'datasets', None) or []), *filter(None.__ne__, [getattr(dataset, 'dataset', None)])]
    for child in inner:
        yield from built_leaves(child)
    if not inner:
        yield dataset


def evaluators(cfg: Config, loader: str) -> Iterator[tuple[str, dict]]:
    """Yield the metrics of a dataloader's split, each with its key in the config."""
    key = loader.replace('_dataloader', '_evaluator')
    found = cfg.get(key) or []
    if isinstance(found, dict) and found.get('metrics'):
        key, found = f'{key}.metrics', found['metrics']
    if isinstance(found, dict):
        yield key, found
    else:
        yield from ((f'{key}.{i}', metric) for i, metric in enumerate(found))


def annotation_file(dataset: dict) -> str | None:
    """Find the local annotation file of a dataset or metric config below its data_root, as the libraries do."""
    name, root = dataset.get('ann_file'), dataset.get('data_root') or ''
    if not name or not isinstance(name, str) or not _is_local(dataset, root, name):
        return None
    name = os.path.expanduser(name)
    below = os.path.join(root, name)
    return name if os.path.exists(name) and not os.path.exists(below) else below


def image_folders(dataset: dict) -> dict[str, str]:
    """Map the names in the `data_prefix` of a dataset config to local folders."""
    prefix, root = dataset.get('data_prefix') or {}, dataset.get('data_root') or ''
    prefixes = dict(img_path=prefix) if isinstance(prefix, str) else prefix
    return {
        name: os.path.join(root, folder)
        for name, folder in prefixes.items()
        if folder and isinstance(folder, str) and _is_local(dataset, root, folder)
    }


def _is_local(dataset: dict, *paths: str) -> bool:
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    return backend == 'local' and not any('://' in path for path in paths)


def missing_folder(dataset: dict, key: str) -> tuple[str, str] | None:
    """Return the root of a dataset config and the remedy if the root is missing, else None."""
    prefix = dataset.get('data_prefix')
    roots = dict(data_root=dataset.get('data_root'), data_prefix=prefix if isinstance(prefix, str) else None)
    for name, folder in roots.items():
        if folder and '://' not in folder and not dataset.get('download'):
            if os.path.exists(folder):
                return None
            help_text = next((text for root, text in DATA_HELP.items() if Path(folder).is_relative_to(root)), None)
            return folder, help_text or f'put the dataset there, or pass --cfg-options {key}.{name}=FOLDER'
    return None


def missing_annotations(dataset: dict, key: str) -> tuple[str, str] | None:
    """Return the annotation file of a dataset or metric config and the remedy if the file is missing, else None."""
    path = annotation_file(dataset)
    if path is None or Path(path).exists():
        return None
    return path, f'put it there, or pass --cfg-options {key}.ann_file=FILE'


def check_paths(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that the data of a config exist.

    Args:
        cfg: the final config.
        loaders: the dataloaders that the run uses.

    Raises:
        FileNotFoundError: a folder or annotation file of a dataset, or the annotation file of a metric, is missing.
    """
    for loader in loaders:
        leaves = list(leaf_datasets((cfg.get(loader) or {}).get('dataset') or {}, f'{loader}.dataset'))
        for key, dataset in leaves:
            if missing := missing_folder(dataset, key):
                raise FileNotFoundError(f'dataset folder {missing[0]!r} of {loader} does not exist: {missing[1]}')
        for key, owner in [*leaves, *evaluators(cfg, loader)]:
            if missing := missing_annotations(owner, key):
                raise FileNotFoundError(f'annotation file {missing[0]!r} of {key} does not exist: {missing[1]}')
