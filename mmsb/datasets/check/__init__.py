"""Check all the data that a config names before a run, to find what would stop or silently spoil it hours later.

The library's own dataset class lists the samples, after its filter and without its pipeline (`dataset.py`). Whatever
that class would hide or crash on is read from the annotation file itself (`coco.py`, `coco_masks.py`), and so is the
file of a metric (`coco_metric.py`). Images and masks are read as the pipeline reads them (`samples.py`). An error stops
a run or spoils its result; a warning is about something that the library skips or clips.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmsb.datasets import paths
from mmsb.options import positive_integer

from . import coco_metric
from .dataset import DatasetCheck
from .findings import Finding, Report, error
from .folders import Folders
from .labels import count_labels, pixel_findings, softmax_of_one, unused_classes
from .names import compare_with_checkpoint

SAMPLES_PER_TASK = 16

Progress = Callable[[str, int, int], None]  # split, samples done, total samples


def check_data(
    cfg: Config,
    loaders: tuple[str, ...] = paths.LOADERS,
    *,
    workers: int = 1,
    on_progress: Progress = lambda split, done, total: None,
) -> list[Report]:
    """Check all samples of all splits.

    Args:
        cfg: the final config.
        loaders: the dataloaders whose datasets are checked; those missing from the config are skipped.
        workers: number of threads that read images.
        on_progress: called with the progress of reading.

    Returns:
        one report for each split; splits that use the same dataset share one.

    Raises:
        ValueError: `workers` is not an integer of at least 1.
    """
    positive_integer('workers', workers)
    check = DataCheck(cfg)
    splits: dict[str, Split] = {}
    for loader in loaders:
        dataset = (cfg.get(loader) or {}).get('dataset')
        if not dataset:
            continue
        name = loader.removesuffix('_dataloader')
        known = f'{loader.startswith("train")} {dataset!r}'
        if known in splits:
            splits[known].report.split += f' and {name}'
        else:
            splits[known] = check.datasets(loader)
            for one in splits[known].checks:
                told = {*splits[known].report.findings}  # such as missing images
                found = _read_samples(one, workers, functools.partial(on_progress, name))
                splits[known].report.findings += [finding for finding in found if finding not in told]
            splits[known].report.findings += _compare_pixels(cfg, splits[known].checks)
        check.metrics(loader, splits[known])
    return [split.report for split in splits.values()]


@dataclass
class Split:
    """A split of a run: its findings, and what has been checked of it."""

    report: Report
    checks: list[DatasetCheck] = field(default_factory=list)
    metrics: list[tuple[dict, list[DatasetCheck]]] = field(default_factory=list)  # checked so far, with their datasets


class DataCheck:
    """Compares whatever decides what a label means, over the splits of a run. It reads no image.

    Args:
        cfg: the final config.
        learnt: path and classes of the checkpoint that the run tests or resumes; None if it has none.
    """

    def __init__(self, cfg: Config, learnt: tuple[str, Sequence[str]] | None = None) -> None:
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        self._cfg, self._learnt = cfg, learnt
        self._classes: tuple[str, Sequence[str]] | None = None  # key and classes of the first dataset that has any
        self._class_folders: list[Folders] = []  # of the datasets so far

    def datasets(self, loader: str, dataset: object = None) -> Split:
        """Check all datasets of a split.

        Args:
            loader: key of its dataloader.
            dataset: what the run has built for it; None to build it here, without its pipeline.
        """
        split = Split(Report(loader.removesuffix('_dataloader')))
        leaves = list(paths.leaf_datasets(self._cfg[loader]['dataset'], f'{loader}.dataset'))
        built = list(paths.built_leaves(dataset)) if dataset is not None else []
        for (key, leaf), one in zip(leaves, built if len(built) == len(leaves) else [None] * len(leaves), strict=True):
            options = dict(training=loader.startswith('train'), dataset=one, class_folders=self._class_folders)
            check = DatasetCheck(self._cfg, key, leaf, **options)
            split.checks.append(check)
            split.report.findings += check.look()
            split.report.images += len(check.samples)
            if self._learnt is not None:
                split.report.findings += compare_with_checkpoint(key, check.classes, *self._learnt)
            split.report.findings += self._compare_classes(key, check.classes)
        if loader.startswith('train'):
            split.report.findings += [*softmax_of_one(check.heads()), *_unused(split)]
        return split

    def metrics(self, loader: str, split: Split) -> list[Finding]:
        """Check the metrics of a split; what is found, which is returned, is added to its report."""
        new = []
        for key, metric in paths.evaluators(self._cfg, loader):
            checks = self._measured(loader, key, split.checks)
            if (metric, checks) not in split.metrics:
                split.metrics.append((metric, checks))
                told = {(found.level, found.kind, found.file, found.item) for found in split.report.findings}
                found = _check_metric(key, metric, checks)
                new += [one for one in found if (one.level, one.kind, one.file, one.item) not in told]
        split.report.findings += new
        return new

    def _compare_classes(self, key: str, classes: Sequence[str] | None) -> Iterator[Finding]:
        """Check that all datasets of a run have the same classes in the same order, which defines the labels."""
        if classes is None:
            return
        self._classes = self._classes or (key, classes)
        first, others = self._classes
        if list(classes) != list(others):
            differ = sorted(set(classes) ^ set(others), key=str)[:5] or 'the order'
            text = f'its {len(classes)} classes differ from the {len(others)} of {first} ({differ}): labels shift'
            yield error('other classes', key, '', text)

    def _measured(self, loader: str, key: str, checks: list[DatasetCheck]) -> list[DatasetCheck]:
        """Return the datasets whose predictions a metric gets: MMDetection's MultiDatasetsEvaluator splits them."""
        evaluator = self._cfg.get(loader.replace('_dataloader', '_evaluator'))
        if not isinstance(evaluator, dict) or 'dataset_prefixes' not in evaluator:
            return checks
        own = f'{loader}.dataset.datasets.{key.rpartition(".")[2]}.'
        return [check for check in checks if f'{check.key}.'.startswith(own)]


def _read_samples(check: DatasetCheck, workers: int, on_progress: Callable[[int, int], None]) -> Iterator[Finding]:
    """Read all images and masks of a dataset in threads; decoders release the GIL."""
    samples, reader = check.samples, check.reader
    if not samples or reader is None:
        return
    starts = range(0, len(samples), SAMPLES_PER_TASK)
    pool = ThreadPoolExecutor(workers)
    try:
        tasks = pool.map(
            lambda start: [one for sample in samples[start : start + SAMPLES_PER_TASK] for one in reader(sample)],
            starts,
        )
        for start, found in zip(starts, tasks, strict=True):
            yield from found
            on_progress(min(start + SAMPLES_PER_TASK, len(samples)), len(samples))
    finally:
        pool.shutdown(cancel_futures=True)


def _unused(split: Split) -> Iterator[Finding]:
    """Warn of classes that no dataset of a split has; a subset of the samples need not have them."""
    classes = next((check.classes for check in split.checks if check.classes), None)
    whole = all(check.leaf.get('indices') is None for check in split.checks)
    if whole and isinstance(classes, (list, tuple)) and not any(one.level == 'error' for one in split.report.findings):
        counts, what = count_labels(sample for check in split.checks for sample in check.samples)
        yield from unused_classes(split.checks[0].key, classes, counts, what)


def _compare_pixels(cfg: Config, checks: list[DatasetCheck]) -> Iterator[Finding]:
    """Compare what has been counted over all images and masks of a split with what the config expects of them."""
    checks = [check for check in checks if check.reader is not None]
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    for check in checks:
        yield from check.reader.ranges.findings(check.key, preprocessor)
    masks = [check for check in checks if check.samples and check.reader.load_mask is not None]
    for check in masks:
        if not np.delete(check.reader.pixels, sorted(check.reader.ignored)).any():
            yield error('empty split', check.key, '', 'all mask pixels are ignored')
    if masks:
        first, reader = masks[0], masks[0].reader
        pixels = sum(check.reader.pixels for check in masks)
        classes = first.classes if all(check.leaf.get('indices') is None for check in masks) else None
        options = dict(training=first.training, reduced=reader.reduced)
        yield from pixel_findings(first.key, pixels, classes, reader.ignored, **options)


def _check_metric(key: str, metric: dict, checks: list[DatasetCheck]) -> Iterator[Finding]:
    """Check a metric against the datasets whose predictions it gets."""
    if missing := paths.missing_annotations(metric, key):
        yield error('missing annotations', missing[0], '', f'of {key} does not exist: {missing[1]}')
    else:
        yield from coco_metric.check(key, metric, paths.annotation_file(metric), checks)
