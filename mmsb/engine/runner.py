"""MMEngine's runner, extended to resume a run exactly and to load checkpoints without running code from them."""

import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from mmsb.checkpoints.load import drop_config_text, load_checkpoint
from mmsb.checkpoints.plain import make_plain, restore
from mmsb.options import one_line
from mmsb.registry import RUNNERS

from . import rng
from .exact_data import PatientWorker, make_exact

STATE = 'exact_resume'  # the checkpoint key for what mmengine's checkpoints lack


@RUNNERS.register_module()
class SafeRunner(Runner):
    """Runner that saves and restores everything that the next iterations depend on.

    In addition to what mmengine's checkpoints hold, these contain the states of the random generators and the gradients
    accumulated so far, for each process; the position in the data; and whether the last validation is done.
    """

    def build_dataloader(self, dataloader, seed: int | None = None, diff_rank_seed: bool = False):
        """Build a dataloader; training samples depend only on the seed and their position in the training."""
        loader = Runner.build_dataloader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed)
        loader.worker_init_fn = PatientWorker(loader.worker_init_fn)
        return make_exact(loader, self.seed) if dataloader is self._train_dataloader else loader

    def train(self) -> torch.nn.Module:
        self._start = None
        if self._resume and self._load_from:
            self._start = self._read(self._load_from)  # read before resuming, since the sampler is built with the seed
            seed = (self._start.get('meta') or {}).get('seed')
            if seed is not None and seed != self._randomness_cfg.get('seed'):
                now = self._randomness_cfg.get('seed')
                self.logger.warning(f'resuming with the seed of the checkpoint, {seed}, instead of {now}')
                self._randomness_cfg.update(seed=seed)
                self.set_randomness(**self._randomness_cfg)
        return super().train()

    def load_checkpoint(
        self, filename, map_location='cpu', strict: bool = False, revise_keys: tuple = ((r'^module.', ''),)
    ):
        """Load the weights of a checkpoint; it may run code only with `trust_checkpoint=True` in the config."""
        checkpoint = getattr(self, '_start', None) or self._read(filename)
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
        processes and of batches per epoch.
        """
        super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
        state, self._loaded_state = self._loaded_state, None
        if not hasattr(self.train_loop, 'resume'):
            self.logger.warning(f'{type(self.train_loop).__name__} is not a training loop of mmsb: the run may differ')
            return
        place = state and self._usable_place(state)
        if not place:
            if state is None:
                self.logger.warning('the checkpoint holds no data position or random states: the run may differ')
            self.train_loop.resume(None, None)
            return
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
        self._state = self._exact_state((meta or {}).get('iter', self.iter)) if kwargs.get('save_optimizer') else None
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
        if fn_name == 'before_save_checkpoint':
            if self._state is not None:
                kwargs['checkpoint'][STATE] = self._state
            make_plain(kwargs['checkpoint'])

    def _read(self, filename) -> dict:
        return restore(drop_config_text(load_checkpoint(filename)))

    def _bare_model(self) -> torch.nn.Module:
        return self.model.module if is_model_wrapper(self.model) else self.model

    def _exact_state(self, iteration: int) -> dict:
        loop = self.train_loop
        place, states = (loop.place(iteration), loop.rng_state()) if hasattr(loop, 'place') else (None, rng.get_state())
        return dict(place=place, processes=all_gather_object(dict(rng=states, gradients=self._partial_gradients())))

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
