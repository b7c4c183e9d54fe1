"""MMEngine's runner, extended to resume a run exactly and to load checkpoints without running code from them."""

import copy

import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.model import is_model_wrapper
from mmengine.registry import LOOPS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from mmsb.checkpoints.load import drop_config_text, forget, load_checkpoint
from mmsb.checkpoints.plain import make_plain, restore
from mmsb.configs import drop_warm_starts
from mmsb.options import one_line
from mmsb.registry import RUNNERS

from . import hook_states, resumed_settings, rng
from .exact_data import PatientWorker, make_exact, name_samples
from .loops import ResumableMixin
from .writers import Lost

STATE = 'exact_resume'  # the checkpoint key for what mmengine's checkpoints lack


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

    def build_dataloader(self, dataloader, seed: int | None = None, diff_rank_seed: bool = False):
        """Build a dataloader; for mmsb's loops, training samples depend only on the seed and their position."""
        loader = name_samples(Runner.build_dataloader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed))
        loader.worker_init_fn = PatientWorker(loader.worker_init_fn)
        exact = dataloader is self._train_dataloader and _is_resumable(self._train_loop)
        return make_exact(loader, self.seed) if exact else loader

    def build_logger(self, *args, **kwargs):
        """Build the logger; from now on, nothing that can't be logged ends the run."""
        self._lost = Lost()
        logger = super().build_logger(*args, **kwargs)
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
        if self._resume and self._load_from:
            self._start = self._read(self._load_from)  # before the sampler is built, with the seed
            parts = (self._start.get(STATE) or {}).get('new_parts')
        if parts is None or not isinstance(model, dict):
            return super().build_model(model)
        model = copy.deepcopy(model)
        drop_warm_starts(model)
        network = super().build_model(model)
        for name, spared in parts.items():
            network.get_submodule(name).spare(spared)
        return network

    def train(self) -> torch.nn.Module:
        if self._start is not None:
            seed = (self._start.get('meta') or {}).get('seed')
            if seed is not None and seed != self._randomness_cfg.get('seed'):
                now = self._randomness_cfg.get('seed')
                self.logger.warning(f'resuming with the seed of the checkpoint, {seed}, instead of {now}')
                self._randomness_cfg.update(seed=seed)
                self.set_randomness(**self._randomness_cfg)
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
        keep = resume_param_scheduler and self.cfg.get(resumed_settings.KEY, True)
        config = resumed_settings.FromConfig(self)
        super().resume(filename, resume_optimizer, keep, map_location)
        if resume_param_scheduler and not keep:
            config.restore()
        if warning := config.overridden():
            self.logger.warning(warning)
        state, self._loaded_state = self._loaded_state, None
        if not _is_resumable(self.train_loop):
            self.logger.warning(f'{type(self.train_loop).__name__} is not a training loop of mmsb: the run may differ')
            return
        place = state and self._usable_place(state)
        if not place:
            if state is None:
                self.logger.warning('the checkpoint holds no data position or random states: the run may differ')
            self.train_loop.resume(None, None)
            return
        hook_states.restore(self, state.get('hooks') or {})
        mine = state['processes'][get_rank()]
        self.train_loop.resume(place, mine['rng'])
        parameters = dict(self._bare_model().named_parameters())
        for name, gradient in mine['gradients'].items():
            parameters[name].grad = gradient.to(parameters[name].device)

    def save_checkpoint(self, out_dir, filename, *args, meta: dict | None = None, **kwargs) -> None:
        """Save a checkpoint; all processes must call it. The first one writes, and a failure is raised in all of them.

        Raises:
            OSError: the checkpoint could not be written.
        """
        error = None
        meta = {**(meta or {}), 'run_id': self.run_id}
        self._state = self._exact_state(meta.get('iter', self.iter)) if kwargs.get('save_optimizer') else None
        try:
            super().save_checkpoint(out_dir, filename, *args, meta=meta, **kwargs)
        except OSError as problem:
            error = one_line(problem)
        finally:
            self._state = None
        error = all_gather_object(error)[0]
        if error:
            raise OSError(error)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_train':
            self._hooks_before = hook_states.remember(self)
            if self.val_loop is not None:
                self._lost.guard_metrics(self.val_loop.evaluator)
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

    def _exact_state(self, iteration: int) -> dict:
        loop = self.train_loop
        place, states = (loop.place(iteration), loop.rng_state()) if hasattr(loop, 'place') else (None, rng.get_state())
        return dict(
            place=place,
            processes=all_gather_object(dict(rng=states, gradients=self._partial_gradients())),
            hooks=hook_states.collect(self, self._hooks_before),
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

    def _usable_place(self, state: dict) -> dict | None:
        place, then = state['place'], len(state['processes'])
        if place is None:
            return None
        same = (then, place['length']) == (self.world_size, len(self.train_dataloader))
        if not same:
            now = f'{self.world_size} processes and {len(self.train_dataloader)} batches per epoch'
            was = f'{then} and {place["length"]}'
            self.logger.warning(f'the run was saved with {was}, and resumes with {now}: it may differ')
        return place if same else None


def _is_resumable(loop) -> bool:
    """Return whether a training loop, or the config of one, is one of mmsb's."""
    kind = loop.get('type') if isinstance(loop, dict) else type(loop)
    kind = LOOPS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, ResumableMixin)
