"""MMEngine's runner, extended to resume a run exactly and to load checkpoints without running code from them."""

import copy
import logging

import torch
from mmengine.dist import all_gather_object, gather_object, get_rank
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch.utils.data import DataLoader

from mmsb.checkpoints.load import drop_config_text, forget, load_checkpoint
from mmsb.checkpoints.plain import make_plain, restore
from mmsb.checkpoints.store import OWN_BACKEND, is_local, pointed_at
from mmsb.configs import drop_warm_starts
from mmsb.options import one_line
from mmsb.registry import RUNNERS

from . import hook_states, resumed_settings, rng
from .exact_data import PatientWorker, length_of, name_samples
from .loops import ResumableMixin
from .turns import Turns
from .writers import Lost

STATE = 'exact_resume'  # the checkpoint key for what mmengine's checkpoints lack
_STEPPED = 'after_train_iter'  # in this call of hooks, the step is done, though not counted yet
_BEFORE_THE_FIGURES = ('before_val', 'before_val_epoch', 'before_val_iter', 'after_val_iter')


@RUNNERS.register_module()
class SafeRunner(Runner):
    """Runner that saves and restores everything that the next iterations depend on.

    In addition to what mmengine's checkpoints hold, these contain the states of the random generators and the gradients
    accumulated so far, for each process; the position in the data; and whether the last validation is done. They also
    hold the identity of the run, the states of hooks that have `state_dict` and `load_state_dict`, and which parts of
    the network its warm start left untrained.
    """

    run_id: str | None = None
    _start: dict | None = None  # the checkpoint to resume from
    _has_initialised = _has_begun = False  # the weights; a training

    def build_dataloader(self, dataloader, seed: int | None = None, diff_rank_seed: bool = False):
        """Build a dataloader, or prepare one that is built: errors name the sample, workers outlive a signal."""
        loader = name_samples(Runner.build_dataloader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed))
        if not isinstance(loader.worker_init_fn, PatientWorker):
            loader.worker_init_fn = PatientWorker(loader.worker_init_fn)
        return loader

    def build_logger(self, *args, **kwargs):
        """Build the logger; from now on, nothing that can't be logged ends the run.

        Processes other than the first have a file of their own, which begins with their first error.
        """
        for loader in (self._train_dataloader, self._val_dataloader, self._test_dataloader):
            if isinstance(loader, DataLoader):
                self.build_dataloader(loader)
        self._turns = Turns()
        self._lost = Lost()
        logger = super().build_logger(*args, **kwargs)
        if self.rank:
            file = logging.FileHandler(f'{self._log_dir}/{self.timestamp}_process{self.rank}.log', delay=True)
            file.setLevel(logging.ERROR)
            logger.addHandler(file)
        self._lost.guard_logger(logger)
        return logger

    def dump_config(self) -> None:
        """Write the config into the work dir, if it can be written."""
        try:
            super().dump_config()
        except OSError as error:
            self._lost.note('the config', error)

    def build_visualizer(self, visualizer=None):
        """Build the visualizer."""
        visualizer = super().build_visualizer(visualizer)
        self._lost.guard_visualizer(visualizer)
        return visualizer

    def build_model(self, model) -> torch.nn.Module:
        """Build the network; one that is about to resume needs none of the files from which its training started."""
        parts = None
        if self._resume and self._load_from is None:
            self._load_from = pointed_at(self.work_dir)
        if self._resume and self._load_from:
            self._start = self._read(self._load_from)
            self._take_seed()  # before the sampler is built
            parts = (self._start.get(STATE) or {}).get('new_parts')
        if parts is None or not isinstance(model, dict):
            return super().build_model(model)
        model = copy.deepcopy(model)
        drop_warm_starts(model)
        network = super().build_model(model)
        for name, spared in parts.items():
            network.get_submodule(name).spare(spared)
        return network

    def _take_seed(self) -> None:
        seed, now = (self._start.get('meta') or {}).get('seed'), self._randomness_cfg.get('seed')
        if seed is not None and seed != now:
            self.logger.warning(f'resuming with the seed of the checkpoint, {seed}, instead of {now}')
            self._randomness_cfg.update(seed=seed)
            self.set_randomness(**self._randomness_cfg)

    def train(self) -> torch.nn.Module:
        if not self._has_begun:  # what `val()` has loaded before is initialised anew, as the averages are
            self._has_loaded = False
        self._has_begun = True
        try:
            return super().train()
        finally:
            self._lost.report()

    def load_checkpoint(
        self, filename, map_location='cpu', strict: bool = False, revise_keys: tuple = ((r'^module.', ''),)
    ):
        """Load the weights of a checkpoint; it may run code only with `trust_checkpoint=True` in the config."""
        checkpoint = self._start or self._read(filename)
        self._start = None
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        checkpoint = _load_checkpoint_to_model(self._bare_model(), checkpoint, strict, revise_keys=list(revise_keys))
        self._loaded_state = checkpoint.get(STATE)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def resume(self, filename, resume_optimizer: bool = True, resume_param_scheduler: bool = True, map_location='cpu'):
        """Resume from a checkpoint.

        The run is the same as an uninterrupted one if this runner wrote the checkpoint, with the same number of
        processes and of batches per epoch. Settings of the config that the checkpoint overrides are a warning; with
        `resume_param_scheduler=False` in the config, those of the config count.
        """
        if self._train_loop is None:  # a validation or test with a config that says `resume`
            self.load_checkpoint(filename)
            return
        if isinstance(self.optim_wrapper, OptimWrapper):
            self._resume_settings(filename, resume_optimizer, resume_param_scheduler, map_location)
        else:  # before a validation or test, which need none
            super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
        state, self._loaded_state = self._loaded_state, None
        if not isinstance(self.train_loop, ResumableMixin):
            self.logger.warning(f'{type(self.train_loop).__name__} is not a training loop of mmsb: the run may differ')
            return
        place = self._usable_place(state)
        if place is None:
            return
        hook_states.restore(self, state.get('hooks') or {})
        mine = state['processes'][get_rank()]
        self.train_loop.resume(place, mine['rng'])
        parameters = dict(self._bare_model().named_parameters())
        for name, gradient in mine['gradients'].items():
            parameters[name].grad = gradient.to(parameters[name].device)

    def _resume_settings(self, filename, resume_optimizer: bool, resume_param_scheduler: bool, map_location) -> None:
        """Resume with the settings of the checkpoint, and warn of those that it overrides; or with the config's."""
        keep = resume_param_scheduler and self.cfg.get(resumed_settings.KEY, True)
        config = resumed_settings.FromConfig(self)
        super().resume(filename, resume_optimizer, keep, map_location)
        if resume_param_scheduler and not keep:
            config.restore()
        if warning := config.overridden():
            self.logger.warning(warning)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save a checkpoint, from any hook; all processes must call it.

        The run resumes from it exactly. The first process writes, a local file whole or not at all, and a failure is
        raised in all of them. With mmsb's loops, `meta` says the completed epochs and iterations, whatever `by_epoch`
        and the given `meta` count. A validation that is under way is repeated on resuming.

        Args:
            out_dir, filename, file_client_args, save_param_scheduler, meta, by_epoch, backend_args: see MMEngine's.
            save_optimizer: whether to save the optimizer, and all else that resuming exactly needs.

        Raises:
            OSError: the checkpoint could not be written.
        """
        if is_local(out_dir, backend_args, file_client_args):
            backend_args, file_client_args = OWN_BACKEND, None
        error = None
        self.call_hook('before_save')  # of our hooks
        with self._turns.settled(self):
            if 'before_run' in self._turns.names and self._has_begun:
                self._init_model_weights()
                self.load_or_resume()
            meta = {**(meta or {}), 'run_id': self.run_id, **self._counters()}
            self._state = self._exact_state() if save_optimizer else None
            try:
                super().save_checkpoint(
                    out_dir,
                    filename,
                    file_client_args,
                    save_optimizer=save_optimizer,
                    save_param_scheduler=save_param_scheduler,
                    meta=meta,
                    by_epoch=by_epoch,
                    backend_args=backend_args,
                )
            except OSError as problem:
                error = one_line(problem)
            finally:
                self._state = None
        error = all_gather_object(error)[0]
        if error:
            raise OSError(error)

    def register_hook(self, hook, priority=None) -> None:
        super().register_hook(hook, priority)
        self._turns.watch(self)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        with self._turns.call(fn_name, kwargs):
            super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_save_checkpoint':
            if self._state is not None:
                kwargs['checkpoint'][STATE] = self._state
            make_plain(kwargs['checkpoint'])

    def _read(self, filename) -> dict:
        checkpoint = load_checkpoint(filename)  # often read and kept already, to validate it
        forget()
        return restore(drop_config_text(checkpoint))

    def _bare_model(self) -> torch.nn.Module:
        return self.model.module if is_model_wrapper(self.model) else self.model

    def _init_model_weights(self) -> None:
        if not self._has_initialised:
            self._has_initialised = True
            super()._init_model_weights()

    def _counters(self) -> dict:
        if not isinstance(self.train_loop, ResumableMixin):
            return {}
        names = self._turns.names
        return self.train_loop.counters(stepped=_STEPPED in names, epoch_ended='after_train_epoch' in names)

    def _exact_state(self) -> dict:
        loop, names = self.train_loop, self._turns.names
        place, states = None, rng.get_state()
        if isinstance(loop, ResumableMixin):
            redo = loop.validating and bool(names) and names[-1] in _BEFORE_THE_FIGURES
            place, states = loop.snapshot(stepped=_STEPPED in names, redo_validation=redo)
        return dict(
            place=place,
            processes=gather_object(dict(rng=states, gradients=self._partial_gradients())),  # the first one writes
            hooks=hook_states.collect(self),
            new_parts={
                name: list(module.new_parts)
                for name, module in self._bare_model().named_modules()
                if getattr(module, 'new_parts', None) is not None
            },
        )

    def _partial_gradients(self) -> dict[str, torch.Tensor]:
        if getattr(self.optim_wrapper, '_accumulative_counts', 1) == 1:
            return {}
        named = self._bare_model().named_parameters()
        return {name: parameter.grad.detach().cpu() for name, parameter in named if parameter.grad is not None}

    def _usable_place(self, state: dict | None) -> dict | None:
        place = state and state['place']
        if not place:  # from stock MMEngine, or another training loop
            self.logger.warning('the checkpoint holds no data position or random states: the run may differ')
            return None
        then, length = len(state['processes']), length_of(self.train_dataloader)
        same = (then, place['length']) == (self.world_size, length)
        if not same:
            now = f'{self.world_size} processes and {length} batches per epoch'
            was = f'{then} and {place["length"]}'
            self.logger.warning(f'the run was saved with {was}, and resumes with {now}: it may differ')
        return place if same else None
