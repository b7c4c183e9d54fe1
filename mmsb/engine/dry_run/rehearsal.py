"""Build all of a run and take one batch through it before anything is written, to find mistakes in the config.

It uses the runner's own methods, in the order of a run, on objects that are thrown away. Nothing is written,
downloaded or loaded, and the random generators are as before afterwards.
"""

import contextlib
import copy
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.registry import LOG_PROCESSORS, METRICS, VISUALIZERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mmsb.checkpoints.load import load_checkpoint, local_path
from mmsb.configs import build_model, drop_warm_starts
from mmsb.datasets.check import DataCheck
from mmsb.datasets.loading import BadImageError, load_sample

from ..processes import warn
from ..resumed_settings import check_resumable
from ..stops import RunStopped
from .alone import untouched
from .blame import explained
from .heed import Heed
from .loaders import LOADER_OPTIONS, batch_sizes, no_batches, norm_of_one_value, one_value, quick_to_read
from .sections import Section, ignored_key, locate
from .signatures import near
from .watch import Mistake, Watch, check_options, check_section, watch

WRITES = ('out', 'output_dir', 'outfile_prefix', 'out_file_path', 'format_only')  # options of metrics that write files


def dry_run(
    cfg: Config,
    loaders: tuple[str, ...],
    check_model: Callable[[nn.Module], None],
    learnt: tuple[str, Sequence[str]] | None = None,
) -> None:
    """Rehearse a run.

    Args:
        cfg: the complete config.
        loaders: names of the dataloaders that the run uses.
        check_model: called with the network once it is built.
        learnt: path and classes of the checkpoint that the run tests or resumes.

    Raises:
        ValueError: a mistake in the config; one line that names the key.
    """
    sections = locate(cfg._cfg_dict)
    sections.work_dir = os.path.abspath(cfg.work_dir)
    with untouched(), watch() as seen:
        rehearsal = Rehearsal(sections, seen, cfg, learnt)
        with rehearsal.stage('model'):
            model = build_model(sections)
        check_model(model)
        rehearsal.run(model, loaders)
    for line in rehearsal.heed.warnings:
        warn(line)


class Rehearsal(Runner):
    """A runner that has nothing to run with but a config: no work dir, no log, no process group.

    Args:
        cfg: the config, its dicts with their places.
        seen: what is built by the registries.
        plain: the same config, whose reading counts for nothing.
        learnt: see `dry_run`.
    """

    def __init__(
        self, cfg: Section, seen: Watch, plain: Config, learnt: tuple[str, Sequence[str]] | None = None
    ) -> None:
        self.cfg, self._seen = cfg, seen
        self._work_dir = self._log_dir = cfg.work_dir
        self._experiment_name = self._timestamp = 'dry_run'
        self._launcher, self._distributed, self._rank, self._world_size = 'none', False, 0, 1
        self._randomness_cfg = cfg.get('randomness') or {}
        self._seed, self._deterministic = self._randomness_cfg.get('seed'), False
        self._train_loop = self._val_loop = self._test_loop = None
        self._sizes, self._single = {}, {}  # by dataloader: of its batches; a batch of one, where there are such
        self._hooks, self._has_loaded, self._load_from, self._resume = [], False, None, False
        self.logger = MMLogger.get_instance('mmengine')
        self.message_hub = MessageHub.get_instance('dry_run')
        self._data, self._splits = DataCheck(plain, learnt), {}
        self.heed = Heed()

    @contextlib.contextmanager
    def stage(self, key: str) -> Iterator[None]:
        """Turn a failure in the block, which builds or uses what a key says, into a line that names the place."""
        self._seen.missed = None
        try:
            yield
        except (RunStopped, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as error:  # the config may name any code
            raise ValueError(explained(error, key, self.cfg, self._seen)) from error

    def run(self, model: nn.Module, loaders: tuple[str, ...]) -> None:
        """Build all else in the order of the runner, and take a batch of each dataloader through the network."""
        cfg, self.model = self.cfg, model
        with self.stage('log_processor'):
            LOG_PROCESSORS.build(cfg.get('log_processor') or {}, default_args=dict(type='LogProcessor'))
        with self.stage('visualizer'):
            self.visualizer = self._visualizer()
        with self.stage('default_hooks'):
            self.register_default_hooks(cfg.get('default_hooks'))
        with self.stage('custom_hooks'):
            self.register_custom_hooks(cfg.get('custom_hooks') or [])
        batches = {}
        if 'train_dataloader' in loaders:
            batches['train'] = self._prepare_training()
        for split in ('val', 'test'):
            if f'{split}_dataloader' in loaders:
                batches[split] = self._prepare_evaluation(split)
        unread = ignored_key(cfg)
        self._use(batches)
        unread = unread or ignored_key(cfg)
        if unread:
            place, meant = unread
            raise ValueError(f'{place} has no effect: did you mean {meant!r}?')

    def _visualizer(self) -> Visualizer:
        section = self.cfg.get('visualizer')
        if section is None:
            return Visualizer.get_instance('dry_run')
        section = section.copy()
        section.setdefault('name', 'dry_run')
        section.setdefault('save_dir', self._log_dir)
        return VISUALIZERS.build(section)

    def _prepare_training(self) -> list | None:
        cfg = self.cfg
        with self.stage('train_dataloader'):
            self._train_dataloader, batch = self._loader('train_dataloader')
        with self.stage('optim_wrapper'):
            self.optim_wrapper = self.build_optim_wrapper(cfg.optim_wrapper)
        if batch is None:
            return None
        with self.stage('train_cfg'):
            self._train_loop = self.build_train_loop(cfg.train_cfg)
        with self.stage('auto_scale_lr'):
            self.param_schedulers = None
            # the config has a batch size, which a loader with a batch sampler has not
            loader, self._train_dataloader = self._train_dataloader, cfg.train_dataloader
            self.scale_lr(self.optim_wrapper, cfg.get('auto_scale_lr'))
            self._train_dataloader = loader
        if cfg.get('param_scheduler') is not None:
            with self.stage('param_scheduler'):
                self.param_schedulers = built = self.build_param_scheduler(cfg.param_scheduler)
                for scheduler in itertools.chain(*(built.values() if isinstance(built, dict) else [built])):
                    scheduler.step()
        start = cfg.get('load_from')
        if cfg.get('resume') and start and local_path(start):
            check_resumable(self, load_checkpoint(start, keep=True), start)
        return batch

    def _prepare_evaluation(self, split: str) -> list | None:
        with self.stage(f'{split}_dataloader'):
            loader, batch = self._loader(f'{split}_dataloader')
        with self.stage(f'{split}_evaluator'):
            if (checked := self._splits.get(f'{split}_dataloader')) is not None:
                self.heed(self._data.metrics(f'{split}_dataloader', checked))  # metrics crash on what it finds
            evaluator = self._evaluator(f'{split}_evaluator')
        setattr(self, f'_{split}_dataloader', loader)
        setattr(self, f'_{split}_evaluator', evaluator)
        if batch is not None:
            with self.stage(f'{split}_cfg'):
                build = getattr(self, f'build_{split}_loop')
                setattr(self, f'_{split}_loop', build(self.cfg[f'{split}_cfg']))
        return batch

    def _loader(self, key: str) -> tuple[DataLoader | None, list | None]:
        """Build a dataloader and its first batch, small; both are None if the run will download the data first."""
        self._seen.no_download = False
        try:
            check_options(self.cfg[key], DataLoader, LOADER_OPTIONS)
            section, shortened = quick_to_read(self.cfg, key)
            loader = self.build_dataloader(section, seed=self.seed)
        except Exception as error:
            own = '.pipeline' not in getattr(getattr(error, 'section', None), '_place', '')
            if self._seen.no_download and own and isinstance(error, (RuntimeError, OSError, AssertionError)):
                return None, None
            self.heed(self._data.datasets(key).report.findings)  # may name the file or annotation at fault
            raise
        if shortened:
            self.heed.warnings.append(f'{key}: its annotations are large: only tools/check_data.py checks them')
        else:
            self._splits[key] = self._data.datasets(key, loader.dataset)
            self.heed(self._splits[key].report.findings)
        loader.num_workers = 0  # some loops start the workers when they are built
        endless = isinstance(loader.dataset, IterableDataset)
        if not endless and not len(loader.dataset):
            raise ValueError('the dataset has no samples')
        sizes = self._sizes[key] = None if shortened else batch_sizes(loader, lambda: self._again(key, loader))
        if sizes == []:
            raise Mistake(no_batches(key, loader))
        if endless:
            return loader, None
        ends = [len(loader.dataset) - 1, 0]  # in folders of classes, the last one has the highest label
        chosen = ends[: max(sizes or [loader.batch_size or 1])]
        try:
            samples = [load_sample(loader.dataset, i) for i in chosen]
        except BadImageError:
            raise
        except ValueError as error:  # the files are sound: a mistake in the config
            raise (error.__cause__ or error) from None
        if sizes and min(sizes) == 1 < len(samples):
            self._single[key] = loader.collate_fn(samples[:1])
        return loader, loader.collate_fn(samples)

    def _again(self, key: str, loader: DataLoader) -> DataLoader:
        """Build a dataloader once more, over the same dataset."""
        loader.dataset.__deepcopy__ = lambda memo: loader.dataset  # the runner copies what it is given
        try:
            return self.build_dataloader({**copy.deepcopy(self.cfg[key]), 'dataset': loader.dataset}, seed=self.seed)
        finally:
            del loader.dataset.__deepcopy__

    def _evaluator(self, key: str) -> Evaluator:
        """Build an evaluator, but without metrics that write files, of which only the options are checked."""
        found = self.cfg[key]
        if isinstance(found, dict) and 'metrics' in found:
            return self.build_evaluator(found)
        metrics = found if isinstance(found, (list, tuple)) else [found]
        silent = [one for one in metrics if not (isinstance(one, dict) and any(dict.get(one, key) for key in WRITES))]
        for one in metrics:
            if one not in silent and isinstance(one, Section):
                check_section(METRICS, one.copy(), self._seen)
                one.keys()  # count as read
        return self.build_evaluator(silent)

    def _use(self, batches: dict) -> None:
        """Take a batch of each split through the network, and the predictions through the metrics."""
        model = self.model
        if not isinstance(model, BaseModel):
            return
        with self.stage('model'):
            _start(model)
            model.to(get_device())
        if batches.get('train') is not None and type(model).train_step is BaseModel.train_step:
            self._learn(batches['train'])
            key = 'train_dataloader'
            if key in self._single and self._sizes[key].index(1) < self._train_loop.max_iters:
                self._learn(self._single[key])
        for split in ('val', 'test'):
            if batches.get(split) is not None:
                self._evaluate(split, batches[split])

    def _learn(self, batch) -> None:
        """Take a batch through the loss."""
        model = self.model
        with self.stage('model'), torch.no_grad(), self.optim_wrapper.optim_context(model):
            model.train()
            data = model.data_preprocessor(batch, True)
            try:
                model.parse_losses(model._run_forward(data, mode='loss'))
            except ValueError as error:
                norm = norm_of_one_value(error, model, sync_bn=bool(self.cfg.get('sync_bn')))
                if norm:
                    key, loader = 'train_dataloader', self._train_dataloader
                    raise Mistake(one_value(key, loader, self._sizes[key], norm)) from error
                if norm is None:
                    raise

    def _evaluate(self, split: str, batch) -> None:
        with self.stage('model'), torch.no_grad():
            self.model.eval()
            predictions = getattr(self.model, f'{split}_step')(batch)
        evaluator = getattr(self, f'{split}_loop').evaluator
        with self.stage(f'{split}_evaluator'):
            evaluator.process(data_samples=predictions, data_batch=batch)
            names = evaluator.evaluate(len(predictions))
        best = (self.cfg.get('default_hooks') or {}).get('checkpoint') or {}
        for name in [best.get('save_best')] if isinstance(best.get('save_best'), str) else best.get('save_best') or []:
            meant = near(name, names)
            if split == 'val' and name != 'auto' and name not in names and meant:
                raise ValueError(f'default_hooks.checkpoint.save_best: no metric {name!r}; did you mean {meant!r}?')


def _start(model: nn.Module) -> None:
    """Initialise a network as a run does, but without the weights of other files."""
    for module in model.modules():
        if getattr(module, 'init_cfg', None) is not None:
            holder = dict(init_cfg=module.init_cfg)
            drop_warm_starts(holder)
            module.init_cfg = holder['init_cfg']
        if getattr(module, 'warm_start', None) is not None:
            module.warm_start = None
    if hasattr(model, 'init_weights'):
        model.init_weights()
